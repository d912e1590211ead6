"""`virtualmle serve-model`: a real process on loopback, asked by concurrent clients."""

import http.client
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.served_model import Served, serving
from tests.toy_export import histories_of, toy_export, toy_log
from tests.waiting import until
from virtualmle.cli.app import main
from virtualmle.serving import Recommender
from virtualmle.serving.live_export import manifest_hash

CLIENT = httpx.Client(timeout=60)  # one for all threads: making a client takes longer than a request
TOKEN = "a-token-of-twenty-four-c"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def model(tiny_dataset_dir: Path, folder: Path) -> Path:
    return toy_export(tiny_dataset_dir, folder / "model")


@pytest.fixture(scope="module")
def recommender(model: Path) -> Recommender:
    return Recommender.load(model, "cpu")


@pytest.fixture(scope="module")
def served(model: Path, folder: Path) -> Iterator[Served]:
    with serving(model, folder / "served.txt") as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def histories(folder: Path) -> list[list[str]]:
    return list(histories_of(toy_log(folder / "log.csv")).values())


def ask(url: str, path: str = "/recommend", **content: object) -> httpx.Response:
    return CLIENT.post(url + path, json=content)


def samples(text: str) -> dict[tuple[str, str], float]:
    """(name, labels) → value; every line must be a comment or a sample in Prometheus' format."""
    sample = re.compile(r'([a-z_]+)(\{(?:[a-z0-9_]+="[^"\\\n]*",?)*\})? (\S+)')
    found = {}
    for line in text.splitlines():
        if not re.match(r"# (HELP|TYPE) virtualmle_[a-z_]+ \S", line):
            match = sample.fullmatch(line)
            assert match, f"not a sample: {line!r}"
            found[match[1], match[2] or ""] = float(match[3])
    return found


def test_the_endpoint_answers_as_the_library_for_all_users(served, recommender, histories):
    expected = recommender.recommend(histories, k=7)
    with ThreadPoolExecutor(8) as pool:
        singles = list(pool.map(lambda history: ask(served.url, history=history, k=7).json(), histories))
    batch = ask(served.url, histories=histories, k=7).json()
    sha256 = manifest_hash(recommender.export.manifest)
    assert batch["export"] == sha256 and len(batch["results"]) == len(histories)
    for single, of_batch, found in zip(singles, batch["results"], expected, strict=True):
        assert single["export"] == sha256
        for answer in (single, of_batch):
            assert tuple(answer["items"]) == found.items
            np.testing.assert_allclose(answer["scores"], found.scores, rtol=1e-4, atol=1e-5)
            assert answer["by_popularity"] == found.by_popularity and tuple(answer["unknown"]) == found.unknown


def test_the_options_of_a_request_mean_what_they_mean_in_the_library(served, recommender, histories):
    history, some = histories[3], recommender.index.ids.to_list()[:12]
    requests = [
        {"exclude": some, "k": 8},
        {"exclude": [*recommender.index.ids[5:], "unheard"], "k": 8},
        {"candidates": [*some, "unheard"], "k": 20},
        {"candidates": some, "exclude": some[:4], "mask_seen": False},
        {"times": list(range(len(history), 0, -1))},
    ]
    with ThreadPoolExecutor(len(requests)) as pool:  # so that different options meet in one batch
        answers = list(pool.map(lambda request: ask(served.url, history=history, **request).json(), requests))
    for request, answer in zip(requests, answers, strict=True):
        found = recommender.recommend(history, **request)
        assert tuple(answer["items"]) == found.items, request
        assert tuple(answer["unknown"]) == found.unknown, request
    similar = ask(served.url, "/similar", item=some[0], k=5).json()
    assert tuple(similar["items"]) == recommender.similar(some[0], k=5).items


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (b'{"history": ["a"]', 422, "Invalid JSON"),
        (b"[]", 422, "object"),
        (b"{}", 422, "give either history"),
        (b'{"history": ["a"], "histories": [["a"]]}', 422, "give either history"),
        (b'{"history": [["a"]]}', 422, "history.0: an item id is a string or a number"),
        (b'{"history": [true]}', 422, "an item id is a string or a number"),
        (b'{"history": [NaN]}', 422, "a string or a finite number"),
        (b'{"history": [1e999]}', 422, "a string or a finite number"),
        (b'{"history": ["a"], "k": 0}', 422, "k: "),
        (b'{"history": ["a"], "k": 1001}', 422, "1000"),
        (b'{"history": ["a"], "top": 3}', 422, "top: "),
        (b'{"history": ["a"], "times": [1, 2]}', 422, "one number per event"),
        (b'{"history": ["a"], "times": [NaN]}', 422, "seconds since 1970"),
        (b'{"history": ["a"], "candidates": ["zz"]}', 422, "none of the candidates"),
        (json.dumps({"history": ["a"] * 5001}).encode(), 422, "5000"),
        (json.dumps({"histories": [["a"]] * 257}).encode(), 422, "256"),
        (b" " * (1 << 20) + b"{}", 413, "1,048,576 bytes"),
    ],
)
def test_bad_requests_get_a_sentence(content, status, sentence, served):
    answer = CLIENT.post(served.url + "/recommend", content=content)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]


def test_other_paths_methods_items_and_host_names_get_a_sentence(served):
    assert "POST /recommend" in CLIENT.get(served.url + "/recommendations").json()["error"]
    assert CLIENT.get(served.url + "/recommend").status_code == 405
    assert "not one of the" in ask(served.url, "/similar", item="unheard").json()["error"]
    refused = CLIENT.get(served.url + "/health", headers={"Host": "evil.example"})
    assert refused.status_code == 421 and "--allowed-host" in refused.json()["error"]
    assert CLIENT.get(served.url + "/health", headers={"Origin": "http://evil.example"}).status_code == 403


def test_the_metrics_parse_and_count_what_was_asked(served, recommender):
    before = samples(CLIENT.get(served.url + "/metrics").text)
    ask(served.url, history=["a"])
    ask(served.url, history=["a"], k=0)
    found = samples(CLIENT.get(served.url + "/metrics").text)
    for name, status in (("requests", "200"), ("requests", "422"), ("errors", "422")):
        key = (f"virtualmle_{name}_total", f'{{path="/recommend",status="{status}"}}')
        assert found[key] == before.get(key, 0) + 1
    counts = [value for (name, labels), value in found.items()
              if name == "virtualmle_request_seconds_bucket" and 'path="/recommend"' in labels]  # fmt: skip
    assert counts == sorted(counts) and counts[-1] == found["virtualmle_request_seconds_count", '{path="/recommend"}']
    assert found["virtualmle_batch_users_sum", ""] >= found["virtualmle_batch_users_count", ""] > 0
    assert found["virtualmle_export_info", f'{{sha256="{manifest_hash(recommender.export.manifest)}"}}'] == 1


def test_no_request_is_lost_while_the_export_is_replaced(
    served, model, recommender, histories, tiny_dataset_dir, folder
):
    old = manifest_hash(recommender.export.manifest)
    other = Recommender.load(toy_export(tiny_dataset_dir, folder / "other", seed=5), "cpu")
    new = manifest_hash(other.export.manifest)
    expected = {old: recommender.recommend(histories, k=5), new: other.recommend(histories, k=5)}
    stop, answers = threading.Event(), []

    def client(number: int) -> None:
        user = number
        while not stop.is_set():
            user = (user + 7) % len(histories)
            answers.append((user, ask(served.url, history=histories[user], k=5)))

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for each in clients:
        each.start()
    try:
        until(lambda: len(answers) > 50)
        toy_export(tiny_dataset_dir, folder / "new", seed=5)
        toy_export(tiny_dataset_dir, model, seed=5)
        until(lambda: answers[-1][1].json()["export"] == new)
        num_answers = len(answers)
        until(lambda: len(answers) > num_answers + 50)
    finally:
        stop.set()
        for each in clients:
            each.join()
    hashes = []
    for user, answer in answers:
        assert answer.status_code == 200, answer.text
        content = answer.json()
        hashes.append(content["export"])
        assert tuple(content["items"]) == expected[content["export"]][user].items
    assert hashes[0] == old and hashes[-1] == new and set(hashes) == {old, new}

    (model / "manifest.json").write_text("{}")
    served.process.send_signal(signal.SIGHUP)
    failed = ("virtualmle_export_loads_total", '{result="failed"}')
    until(lambda: samples(CLIENT.get(served.url + "/metrics").text)[failed] >= 1)
    assert ask(served.url, history=histories[0]).json()["export"] == new, "a damaged export does not replace a good one"


def test_a_token_a_full_queue_and_a_graceful_end(tiny_dataset_dir, folder, histories):
    export = toy_export(tiny_dataset_dir, folder / "guarded")
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "token").chmod(0o600)
    options = ("--token-file", str(folder / "token"), "--max-waiting", "1", "--max-batch", "1")
    with serving(export, folder / "guarded.txt", *options) as endpoint:
        url, bearer = endpoint.url, {"Authorization": f"Bearer {TOKEN}"}
        for wrong in ({}, {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"Authorization": TOKEN}):
            refused = CLIENT.post(url + "/recommend", json={"history": []}, headers=wrong)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert CLIENT.get(url + "/metrics").status_code == 401 and CLIENT.get(url + "/health").status_code == 200

        def full(_: int) -> httpx.Response:
            return CLIENT.post(url + "/recommend", json={"histories": histories, "k": 50}, headers=bearer)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(full, range(48)))
        refused = [answer for answer in answers if answer.status_code == 503]
        assert {answer.status_code for answer in answers} == {200, 503}
        assert refused[0].headers["retry-after"] == "1" and "send this one again" in refused[0].json()["error"]
        _finish_a_request_during_the_shutdown(endpoint)


def _finish_a_request_during_the_shutdown(endpoint: Served) -> None:
    """A request whose body is half sent at SIGTERM is answered, and the process then ends with 0."""
    host, port = endpoint.url.removeprefix("http://").split(":")
    body = json.dumps({"history": ["a", "b"], "k": 3}).encode()
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.putrequest("POST", "/recommend")
    connection.putheader("Authorization", f"Bearer {TOKEN}")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:5])
    time.sleep(0.2)  # the server must have accepted the connection
    endpoint.process.send_signal(signal.SIGTERM)

    def is_closed() -> bool:
        try:
            CLIENT.get(endpoint.url + "/health")
        except httpx.HTTPError:
            return True
        return False

    until(is_closed)
    connection.send(body[5:])
    answer = connection.getresponse()
    assert answer.status == 200 and len(json.loads(answer.read())["items"]) == 3
    connection.close()
    assert endpoint.process.wait(timeout=60) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "give a bearer token"),
        (["--host", "0.0.0.0", "--token", "short"], "at least 16"),
        (["--token-file", "nothing"], "cannot be read"),
    ],
)
def test_another_host_needs_a_token_that_cannot_be_guessed(options, sentence, model, capsys):
    with pytest.raises(SystemExit) as left:
        main(["serve-model", str(model), "--port", "0", *options])
    assert left.value.code == 1 and sentence in capsys.readouterr().err
