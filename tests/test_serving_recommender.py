"""An exported model in use: ranks equal to those of evaluation, exact lists, ids, popularity, candidates, tables."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.exported import contents_of
from virtualmle.data.demo import generate_demo
from virtualmle.data.errors import ExportError, MachineError
from virtualmle.data.histories import Histories
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.examiner.main import histories_before_test
from virtualmle.models.priors import ScorePriors
from virtualmle.serving import Recommender, engine
from virtualmle.serving.artifact import write_export
from virtualmle.serving.results import RecommendationBatch, Recommendations
from virtualmle.training import catalogue_scores
from virtualmle.training.evaluate import encode_users, evaluate_targets, train_histories

PRIORS = {"transition_weight": 3.0, "cooccurrence_weight": 2.0, "popularity_weight": 0.5}
CASES = {
    "sasrec": ("sasrec", {}),
    "hstu": ("hstu", {}),
    "sasrec with priors": ("sasrec", PRIORS),
    "hstu with priors": ("hstu", {**PRIORS, "score_normalisation": "minmax"}),
    "rerank": ("sasrec", {**PRIORS, "fusion": "rerank", "rerank_top": 12}),
    "cosine scores": ("hstu", {**PRIORS, "scores": "cosine", "temperature": 0.1, "tie_embeddings": False}),
    "time bias": ("hstu", {"time_bias": True, "transition_weight": 2.0}),
}
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]


@pytest.fixture(scope="module")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled demo dataset; its test targets are sealed for nobody."""
    frame = generate_demo()
    directory = tmp_path_factory.mktemp("data") / "demo"
    prepare(
        Log(frame, {name: name for name in frame.columns}, len(frame)), "demo", directory, PrepareOptions(), b"k" * 32
    )
    return directory


@pytest.fixture(scope="module")
def demo(demo_dir: Path) -> PreparedDataset:
    return PreparedDataset.load(demo_dir)


@pytest.fixture(scope="module")
def shop(demo_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    """A model with priors, loaded from its export."""
    return load(demo_dir, tmp_path_factory.mktemp("shop"), ("sasrec", PRIORS))


def load(dataset_dir: Path, folder: Path, *members, device: str = "cpu", **scoring) -> Recommender:
    write_export(folder / "export", contents_of(dataset_dir, folder, *members, **scoring))
    return Recommender.load(folder / "export", device)


def of_user(histories: Histories, user: int) -> np.ndarray:
    return histories.items[histories.offsets[user] : histories.offsets[user + 1]]


def top(recommender: Recommender, histories: Histories, k: int, **options):
    return recommender.top(histories.items, histories.offsets, histories.times, k, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_ranks_of_all_users_equal_those_of_the_examiner_and_lists_follow_these_ranks(
    case, device, demo, demo_dir, tmp_path
):
    recommender = load(demo_dir, tmp_path, CASES[case], device=device)
    (member,) = recommender.export.members
    priors = ScorePriors.from_dataset(demo, member.config, device)
    targets = np.random.default_rng(5).integers(0, demo.num_items, demo.num_users).astype(np.int32)
    for histories in (train_histories(demo), histories_before_test(demo)):
        expected = evaluate_targets(member.model, member.config, histories, targets, priors, demo.num_items)
        ranks, ties = recommender.ranks(histories.items, histories.offsets, targets, histories.times)
        np.testing.assert_array_equal(ranks, expected[0])
        assert ties == expected[1]
        numbers, scores = top(recommender, histories, 20)
        assert (np.diff(scores, axis=1) <= 0).all()
        for user, target in enumerate(targets):
            seen = of_user(histories, user)
            assert not np.isin(numbers[user], seen).any()
            if ranks[user] <= 20 and target not in seen:
                assert target in numbers[user, : ranks[user]]  # pessimistic ranks put a tied target last


@pytest.mark.parametrize("threads", [1, 2])
def test_lists_do_not_depend_on_blocks_threads_or_neighbours(threads, demo, shop, monkeypatch):
    histories = train_histories(demo)
    at_once = top(shop, histories, 10)
    monkeypatch.setitem(catalogue_scores.BLOCK_SCORES, "cpu", 7 * demo.num_items)
    monkeypatch.setattr(engine, "CHUNK_USERS", 100)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        in_blocks = top(shop, histories, 10)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(in_blocks[0], at_once[0])
    np.testing.assert_allclose(in_blocks[1], at_once[1], rtol=1e-5)
    alone = [shop.top(of_user(histories, user), np.array([0, len(of_user(histories, user))])) for user in range(40)]
    np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in alone]), at_once[0][:40])


def z_scores(model, config, histories: Histories) -> np.ndarray:
    """The z-scores of all users, float64 (num_users, num_items)."""
    users = model.items.scaled(encode_users(model, config, histories)).detach().double()
    scores = (users @ model.items.catalogue().detach().double().T).numpy()
    return (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)


def test_an_ensemble_has_the_mean_of_its_members_z_scores_and_its_own_priors(demo, demo_dir, tmp_path):
    members = [("sasrec", {"scores": "cosine", "temperature": 0.1}), ("hstu", {}), ("hstu", {"hidden_dim": 24})]
    ensemble = load(demo_dir, tmp_path, *members, transition_weight=2.0)
    histories = histories_before_test(demo)
    mean = np.mean([z_scores(each.model, each.config, histories) for each in ensemble.export.members], axis=0)
    users = ensemble.engine.user_vectors(histories).numpy()
    vectors = np.load(tmp_path / "export" / "item_vectors.npy")
    assert vectors.shape == (demo.num_items, 16 + 16 + 24) and vectors.dtype == np.float32
    np.testing.assert_allclose(users @ vectors.T, mean, atol=1e-4)
    fused = torch.tensor(mean, dtype=torch.float32)
    ensemble.export.priors.add_to(fused, torch.tensor(histories.items), torch.tensor(histories.offsets))
    found = ensemble.engine.scores(histories, np.arange(demo.num_items, dtype=np.int32))
    np.testing.assert_allclose(found, fused.numpy(), atol=1e-3)


@pytest.mark.parametrize("knobs", [{}, {"scores": "cosine", "temperature": 0.05}], ids=["dot", "cosine"])
def test_item_vectors_and_user_vectors_reproduce_the_scores_without_priors(knobs, demo, demo_dir, tmp_path):
    recommender = load(demo_dir, tmp_path, ("sasrec", knobs))
    ids = recommender.index.originals(demo.items[:5])
    vectors = np.load(tmp_path / "export" / "item_vectors.npy")
    scored = recommender.score(ids, recommender.export.items)
    np.testing.assert_allclose(vectors @ recommender.user_vectors([ids])[0], scored.scores, rtol=1e-4, atol=1e-5)


def test_lists_by_ids_equal_lists_by_arrays(demo, shop):
    histories = train_histories(demo)
    numbers, scores = top(shop, histories, 7)
    batch = shop.recommend([shop.index.originals(of_user(histories, user)) for user in range(30)], k=7)
    assert isinstance(batch, RecommendationBatch) and len(batch) == 30
    for user, found in enumerate(batch):
        assert list(found.items) == shop.index.originals(numbers[user])
        np.testing.assert_allclose(found.scores, scores[user], rtol=1e-5)
    frame = batch.to_frame()
    assert frame.columns == ["history", "rank", "item", "score"] and frame.height == 210
    assert frame.filter(pl.col("history") == 3)["item"].to_list() == list(batch[3].items)


def test_unknown_items_are_skipped_and_named_and_change_nothing(shop):
    known = shop.index.originals(np.arange(3, dtype=np.int32))
    found = shop.recommend(["new", *known, "new", 17], k=5, candidates=None)
    assert found.unknown == ("new", 17)
    assert found.items == shop.recommend(known, k=5).items
    assert "unknown and left out: new, 17" in str(found)


def test_an_empty_history_gets_the_items_with_most_events(demo, shop):
    counts = np.bincount(demo.items, minlength=demo.num_items)
    popular = np.lexsort((np.arange(demo.num_items), -counts))[:5].astype(np.int32)
    found = shop.recommend([], k=5)
    assert found.by_popularity and list(found.items) == shop.index.originals(popular)
    assert list(found.scores) == counts[popular].tolist()
    mixed = shop.recommend([["never seen"], list(found.items), []], k=5)
    assert [each.by_popularity for each in mixed] == [True, False, True]
    assert mixed[0].items == mixed[2].items == found.items != mixed[1].items
    barred = shop.recommend([], k=5, exclude=found.items[:1])
    assert barred.items[:4] == found.items[1:]


def test_candidates_and_exclusions_restrict_the_list_but_not_the_scores(shop):
    history = shop.index.originals(np.array([4, 9], np.int32))
    full = shop.recommend(history, k=shop.num_items)
    assert len(full) == shop.num_items - 2  # the history is left out
    few = shop.recommend(history, k=10, candidates=[*full.items[40:43], "unheard of"])
    assert (few.items, few.unknown) == (full.items[40:43], ("unheard of",))
    np.testing.assert_allclose(few.scores, full.scores[40:43], rtol=1e-5)
    assert shop.recommend(history, k=3, exclude=full.items[:4]).items == full.items[4:7]
    seen = shop.recommend(history, k=shop.num_items, mask_seen=False)
    assert len(seen) == shop.num_items and set(history) <= set(seen.items)
    with pytest.raises(ExportError, match="none of the candidates"):
        shop.recommend(history, candidates=["unheard of"])


def test_scores_of_chosen_items_come_in_the_order_of_the_request(shop):
    history = shop.index.originals(np.array([4, 9], np.int32))
    ranked = shop.recommend(history, k=5, mask_seen=False)
    scored = shop.score(history, [*reversed(ranked.items), "unheard of"])
    assert (scored.items, scored.unknown) == (ranked.items[::-1], ("unheard of",))
    np.testing.assert_allclose(scored.scores, ranked.scores[::-1], rtol=1e-5)


def test_similar_items_have_the_largest_cosines(shop):
    vectors = shop.export.members[0].model.item_table().detach().numpy().astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit[7]
    cosines[7] = -np.inf
    found = shop.similar(shop.index.originals(np.array([7], np.int32))[0], k=6)
    assert list(found.items) == shop.index.originals(np.argsort(-cosines)[:6].astype(np.int32))
    np.testing.assert_allclose(found.scores, np.sort(cosines)[::-1][:6], rtol=1e-4)
    with pytest.raises(ExportError, match="not one of the"):
        shop.similar("unheard of")


def test_times_sort_a_history_and_reach_a_model_that_reads_them(demo, demo_dir, tmp_path):
    recommender = load(demo_dir, tmp_path, ("hstu", {"time_bias": True}))
    ids = recommender.index.originals(demo.items[:4])
    seconds = [1_400_000_000, 1_400_086_400, 1_409_000_000, 1_409_000_060]
    expected = recommender.recommend(ids, times=seconds)
    mixed = [2, 0, 3, 1]
    again = recommender.recommend([ids[n] for n in mixed], times=[seconds[n] for n in mixed])
    assert again == expected
    dates = [datetime.fromtimestamp(second, UTC) for second in seconds]
    assert recommender.recommend(ids, times=[dates[0].replace(tzinfo=None), *dates[1:]]) == expected
    gap = round(demo.profile["median_gap_days"] * 86_400)
    without = recommender.recommend(ids)
    assert without == recommender.recommend(ids, times=[0, gap, 2 * gap, 3 * gap])
    assert recommender.needs_times and without.scores != expected.scores


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"history": "item-7"}, "a list of item ids", id="a bare string"),
        pytest.param({"history": [["a"], "b"]}, "mixed", id="a batch with an id in it"),
        pytest.param({"history": ["a"], "k": 0}, "k=0 is not positive", id="no items"),
        pytest.param({"history": ["a"], "k": 1.5}, "k=1.5 is not a whole number", id="half an item"),
        pytest.param({"history": [[["a"]]]}, "a batch a list of histories", id="nested too deeply"),
        pytest.param({"history": ["a"], "times": [2**63]}, "too large", id="a time beyond int64"),
        pytest.param({"history": ["a"], "exclude": "b"}, "given as a list of ids", id="a string of excluded items"),
        pytest.param({"history": ["a", "b"], "times": [1]}, "2 items and 1 times", id="a time is missing"),
        pytest.param({"history": [["a"], ["b"]], "times": [[1]]}, "2 histories", id="a history has no times"),
        pytest.param({"history": ["a"], "times": ["noon"]}, "number of seconds", id="a time in words"),
    ],
)
def test_requests_that_make_no_sense_are_refused_with_the_reason(arguments, message, shop):
    with pytest.raises(ExportError, match=message):
        shop.recommend(**arguments)


@pytest.mark.parametrize(
    ("items", "offsets", "message"),
    [
        pytest.param([0, -1], [0, 2], "numbers from 0", id="an unknown item"),
        pytest.param([0, 10_000], [0, 2], "numbers from 0", id="an item beyond the catalogue"),
        pytest.param([0, 1], [0, 1], "rise from 0", id="events of no user"),
        pytest.param([0, 1], [0, 2, 1, 2], "rise from 0", id="falling offsets"),
    ],
)
def test_arrays_that_are_no_histories_of_this_catalogue_are_refused(items, offsets, message, shop):
    with pytest.raises(ExportError, match=message):
        shop.top(np.array(items, np.int32), np.array(offsets))


def test_no_users_get_no_lists(shop):
    numbers, scores = shop.top(np.empty(0, np.int32), np.zeros(1, np.int64), k=4)
    assert numbers.shape == scores.shape == (0, 4)


def test_a_model_that_scores_nan_is_refused_instead_of_recommending(demo_dir, tmp_path):
    contents = contents_of(demo_dir, tmp_path, ("sasrec", {}))
    with torch.no_grad():
        contents.members[0].model.item_table()[3] = torch.nan
    write_export(tmp_path / "export", contents)
    broken = Recommender.load(tmp_path / "export", "cpu")
    with pytest.raises(ExportError, match="not finite"):
        broken.top(np.array([1], np.int32), np.array([0, 1]))


def test_an_unknown_device_is_refused(demo_dir, tmp_path):
    write_export(tmp_path / "export", contents_of(demo_dir, tmp_path, ("sasrec", {})))
    for device in ("tpu", "meta", "cuda:99"):
        with pytest.raises(MachineError, match="use auto"):
            Recommender.load(tmp_path / "export", device)


def test_results_print_as_tables_and_escape_ids_in_notebooks():
    found = Recommendations(("<b>", "item-2"), (2.5, -1.25), unknown=("x",))
    assert str(found).splitlines() == [
        "   item    score",
        "1  <b>       2.5",
        "2  item-2  -1.25",
        "(unknown and left out: x)",
    ]
    assert "&lt;b&gt;" in found._repr_html_() and "<b>" not in found._repr_html_()
    assert found[0].item == "<b>" and [each.score for each in found] == [2.5, -1.25]
    batch = RecommendationBatch((found,) * 25)
    assert "… and 5 more histories" in str(batch) and batch._repr_html_().count("<tr>") == 21


def test_a_list_is_not_longer_than_the_catalogue_however_large_k_is(shop):
    assert len(shop.recommend(["a"], k=10**12, mask_seen=False)) == shop.num_items
