"""Sessions are tracked to real places: an MLflow server and store, an Optuna storage and its dashboard, event files."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.tracked_home import SESSION, close_session, tracked_home
from virtualmle.cli.app import main
from virtualmle.data.errors import ConfigError, TrackingError
from virtualmle.memory.store import Memory
from virtualmle.models.knobs.declaration import BACKBONES
from virtualmle.sandbox.protocol import load_protocol
from virtualmle.tracking.optuna_study import distributions_of
from virtualmle.tracking.snapshot import Snapshot, read_snapshot
from virtualmle.tracking.targets import parse_targets
from virtualmle.tracking.tracker import Following, Tracker, one_at_a_time

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of MLflow, its database library and TensorBoard
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections that these libraries leave to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PYTHON = [sys.executable, "-P"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tracked_home(tmp_path / "home")


def snapshot_of(home: Path, export: Path | None = None) -> Snapshot:
    with Memory(home / "memory.db") as memory:
        return read_snapshot(home, memory, SESSION, export)


def track(capsys: pytest.CaptureFixture[str], home: Path, *options: str) -> tuple[int, str]:
    """Exit code and standard error of `virtualmle track`."""
    with pytest.raises(SystemExit) as left:
        main(["track", SESSION, *options, "--home", str(home)])
    return int(left.value.code or 0), capsys.readouterr().err


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], folder: Path, url: str, seconds: float = 240.0) -> Iterator[None]:
    """A server process that answers at `url`; its output is in `folder`."""
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as server,
    ):
        try:
            deadline = time.monotonic() + seconds
            while not _answers(url):
                assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.2)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, 15)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def test_a_snapshot_has_no_test_figure_before_the_reveal(home: Path) -> None:
    before = snapshot_of(home)
    assert before.test == {} and not before.is_over and before == snapshot_of(home)
    running = before.trials[-1]
    assert (running.status, running.series) == ("running", {"best_ndcg_at_10": ((2, 0.017),)})
    close_session(home)
    after = snapshot_of(home)
    assert after.test == {"test/ndcg_at_10": 0.044} and after.is_over
    assert after.best == ((1, 0.03), (2, 0.03), (5, 0.05)) and after.figures["validation/ndcg_at_10"] == 0.05


def test_the_study_in_an_optuna_storage_is_that_of_the_session(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    assert track(capsys, home, "--optuna", url)[0] == 0
    (name,) = optuna.get_all_study_names(url)
    study = optuna.load_study(study_name=name, storage=url)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "FAIL", "RUNNING"] and name.startswith(SESSION)
    assert study.best_value == 0.03 and study.trials[0].intermediate_values == {1: 0.01, 2: 0.02, 3: 0.03}
    assert study.trials[1].params["hidden_dim"] == 32 and study.trials[1].distributions["hidden_dim"].high == 32
    assert not any("test" in attribute for attribute in study.user_attrs)
    close_session(home)
    for _ in range(2):  # the second time adds nothing
        assert track(capsys, home, "--optuna", url)[0] == 0
    study = optuna.load_study(study_name=name, storage=url)
    assert len(study.trials) == 5 and study.best_trial.user_attrs["trial"] == "t005"
    assert study.trials[4].intermediate_values[3] == 0.03 and study.user_attrs["test/ndcg_at_10"] == 0.044


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_shipped_knob_that_is_no_list_of_trials_has_a_distribution(backbone: str) -> None:
    space = load_protocol(None).space
    distributions = distributions_of(space.knobs(backbone))
    left_out = {knob.name for knob in space.knobs(backbone)} - set(distributions)
    assert left_out == {"ensemble", "teachers"}
    default = space.default(backbone).model_dump()
    for name, distribution in distributions.items():
        assert distribution._contains(distribution.to_internal_repr(default[name])), name


def test_event_files_are_read_back_by_tensorboard_and_survive_a_torn_record(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415 - a second

    def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(path)).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("_hparams_")]
        return {tag: [(event.step, round(event.value, 5)) for event in events.Scalars(tag)] for tag in tags}

    assert track(capsys, home, "--tensorboard", str(tmp_path / "logs"))[0] == 0
    folder = tmp_path / "logs" / snapshot_of(home).name
    first = scalars(folder / "t001")
    assert first["model_ndcg_at_10"] == [(1, 0.01), (2, 0.02), (3, 0.03)] and first["validation/ndcg_at_10"]
    assert "best_ndcg_at_10" in scalars(folder) and not any(tag.startswith("test") for tag in scalars(folder))
    (torn,) = (folder / "t005").glob("events*")
    torn.write_bytes(torn.read_bytes()[:-3])
    close_session(home)
    for _ in range(2):
        assert track(capsys, home, "--tensorboard", str(tmp_path / "logs"))[0] == 0
    assert scalars(folder / "t001") == first
    assert scalars(folder / "t005")["model_ndcg_at_10"] == [(1, 0.01), (2, 0.02), (3, 0.03)]
    assert scalars(folder)["test/ndcg_at_10"] == [(5, 0.044)]


def mlflow_runs(uri: str) -> dict[str, Any]:
    """The runs in MLflow by name."""
    from mlflow import MlflowClient  # noqa: PLC0415 - two seconds

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("virtualmle")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def check_mlflow(home: Path, uri: str, capsys: pytest.CaptureFixture[str], export: Path) -> None:
    from mlflow import MlflowClient  # noqa: PLC0415

    assert track(capsys, home, "--mlflow", uri)[0] == 0
    runs = mlflow_runs(uri)
    assert sorted(runs) == [SESSION, "t001", "t002", "t003", "t004", "t005"]
    assert {name: run.info.status for name, run in runs.items()} == {
        SESSION: "RUNNING", "t001": "FINISHED", "t002": "FINISHED", "t003": "KILLED", "t004": "FAILED",
        "t005": "RUNNING",
    }  # fmt: skip
    assert runs["t002"].data.params["hidden_dim"] == "32" and runs["t002"].data.metrics["validation/ndcg_at_10"] == 0.02
    assert runs["t001"].data.tags["mlflow.parentRunId"] == runs[SESSION].info.run_id
    assert not any(name.startswith("test") for run in runs.values() for name in run.data.metrics)
    close_session(home)
    for _ in range(2):
        assert track(capsys, home, "--mlflow", uri, "--export", str(export))[0] == 0
    runs = mlflow_runs(uri)
    parent = runs[SESSION]
    assert len(runs) == 6 and parent.info.status == "FINISHED" and parent.data.metrics["test/ndcg_at_10"] == 0.044
    client = MlflowClient(tracking_uri=uri)
    history = client.get_metric_history(runs["t005"].info.run_id, "model_ndcg_at_10")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.01), (2, 0.02), (3, 0.03)]
    files = {file.path for folder in ("report", "export") for file in client.list_artifacts(parent.info.run_id, folder)}
    assert files == {f"report/{SESSION}.html", "export/manifest.json"}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.slow  # the server's start alone takes more than ten seconds
def test_a_session_is_tracked_to_an_mlflow_server(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], export: Path
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    store = f"sqlite:///{tmp_path}/mlflow.db"
    command = [*PYTHON, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", store, "--artifacts-destination", str(tmp_path / "artefacts")]  # fmt: skip
    with serving(command, tmp_path, f"{uri}/health"):
        check_mlflow(home, uri, capsys, export)


@pytest.mark.slow
def test_optuna_dashboard_serves_the_trials_of_a_session(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    url = f"sqlite:///{tmp_path}/studies.db"
    assert track(capsys, home, "--optuna", url)[0] == 0
    program = f"import optuna_dashboard; optuna_dashboard.run_server({url!r}, host='127.0.0.1', port={port})"
    command = [*PYTHON, "-c", program]
    with serving(command, tmp_path, f"http://127.0.0.1:{port}/api/studies"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies") as answer:
            (study,) = json.load(answer)["study_summaries"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies/{study['study_id']}?after=0") as answer:
            trials = json.load(answer)["trials"]
    assert [trial["state"] for trial in trials] == ["Complete", "Complete", "Pruned", "Fail", "Running"]


def test_a_tracker_that_is_down_is_named_and_nothing_is_lost(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = track(capsys, home, "--mlflow", f"http://127.0.0.1:{free_port()}")
    assert code == 1 and "MLflow at http://127.0.0.1" in error and "Traceback" not in error


class Flaky(Tracker):
    """A tracker that is down as long as `down` is true."""

    target = "the flaky tracker"

    def __init__(self) -> None:
        self.down, self.calls = True, 0

    def sync(self, snapshot: Snapshot) -> None:
        self.calls += 1
        if self.down:
            raise TrackingError(f"{self.target} is down")


def test_an_outage_is_warned_of_once_and_retried_later(home: Path) -> None:
    now, said, tracker = [0.0], list[str](), Flaky()
    following = Following(tracker, said.append, clock=lambda: now[0])
    snapshot = snapshot_of(home)
    for moment in (0.0, 1.0, 5.0, 6.0, 15.0):
        now[0] = moment
        following.step(snapshot)
    assert tracker.calls == 3 and len(said) == 1 and following.failed
    tracker.down = False
    following.step(snapshot, last=True)
    following.step(snapshot)  # nothing has changed
    assert tracker.calls == 4 and following.failed is None and said[-1].endswith("it is up to date")


def test_one_process_at_a_time_tracks_to_a_place(home: Path) -> None:
    with (
        one_at_a_time(home, SESSION, "a"),
        one_at_a_time(home, SESSION, "b"),
        pytest.raises(TrackingError, match=f"by process {os.getpid()}"),
        one_at_a_time(home, SESSION, "a"),
    ):
        pass


@pytest.mark.parametrize("text", ["wandb=x", "mlflow", "mlflow="])
def test_an_unknown_target_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write mlflow=URI"):
        parse_targets([text])


def test_sessions_of_the_same_name_in_two_homes_are_two_studies(home: Path, tmp_path: Path) -> None:
    other = tracked_home(tmp_path / "other")
    copy = Path(shutil.copytree(home, tmp_path / "copy"))
    assert snapshot_of(other).name != snapshot_of(home).name == snapshot_of(copy).name
