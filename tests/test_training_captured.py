"""Steps of fixed shape: equal results to plain steps, constant shapes, and no wait for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from virtualmle.data.prepared import PreparedDataset
from virtualmle.kernels.jagged.packing import PackingPlan
from virtualmle.kernels.losses import linear_cross_entropy
from virtualmle.models import item_table
from virtualmle.models.batch import JaggedBatch
from virtualmle.models.config import make_config
from virtualmle.training.averaging import WeightAverage
from virtualmle.training.batches import TrainBatch
from virtualmle.training.captured import FixedSteps, capture_obstacle
from virtualmle.training.fixed_batches import padded_size
from virtualmle.training.optimizer import FusedAdam
from virtualmle.training.trainer import Training, fit

torch.set_num_threads(1)
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PLAIN = {"dropout": 0.0, "hidden_dim": 16, "linear_dim": 8, "attention_dim": 8, "batch_size": 32, "num_negatives": 20}

CAPTURABLE = [
    {},
    {"loss": "full_softmax", "label_smoothing": 0.1, "scores": "cosine", "temperature": 0.1},
    {"loss": "bce", "negative_sharing": "position", "num_heads": 2},
    {"loss": "gbce", "position": "rotary", "tie_embeddings": True},
    {"logq_correction": True, "negative_power": 0.5, "label_smoothing": 0.1},
    {"supervision": "last", "window_stride": 2, "causal": False, "position": "both"},
    {"supervision": "last", "loss": "full_softmax", "readout": "attention"},
    {"readout": "last_k", "latent_steps": 1, "norm": "rms", "norm_placement": "post"},
    {"conv_kernel": 3, "frequency_filter": True, "frequency_rescaling": 0.5, "max_len": 8},
    {"readout": "mean", "position": "relative", "time_bias": True, "num_blocks": 2, "shared_blocks": True},
]


@pytest.fixture(scope="module")
def dataset(tiny_dataset_dir):
    return PreparedDataset.load(tiny_dataset_dir)


def float64_training(config, dataset):
    """A `Training` in float64, so that rounding does not hide differences between formulas."""
    training = Training(config, dataset, 3, CPU)
    training.model.double().train()
    training.optimizer = FusedAdam(training.model, config)
    training.average = WeightAverage(training.model, config.ema_decay) if config.ema_decay else None
    return training


def losses_and_gradients(training, batches):
    found = []
    for number, batch in enumerate(batches):
        training.negatives.manual_seed(number)  # padding tokens may have drawn negatives, too
        training.optimizer.zero_grad()
        loss = training.loss(batch)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad.clone() for parameter in training.model.parameters())])
    return found


def fixed_batches(training, change=lambda batch: batch, extra=0):
    """The batches of an epoch in fixed shape, each with `extra` additional padding tokens."""
    steps = FixedSteps(training.batches, ()).batches
    for shape in steps.shuffle([(1.0, 0.0)] * training.batches.num_batches):
        yield change(steps.batch(shape.num_tokens + extra))
        steps.advance()


@pytest.mark.parametrize("knobs", CAPTURABLE, ids=str)
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_a_step_of_fixed_shape_has_the_loss_and_gradients_of_the_plain_step(backbone, knobs, dataset):
    config = make_config(backbone, **{**PLAIN, **knobs})
    assert capture_obstacle(config, dataset.num_items) is None
    plain, fixed = float64_training(config, dataset), float64_training(config, dataset)
    expected = losses_and_gradients(plain, plain.batches.epoch())
    found = losses_and_gradients(fixed, fixed_batches(fixed))
    assert len(found) == len(expected) > 2
    assert len(plain.batches.lengths) % config.batch_size, "the last batch must be smaller"
    for step, expected_step in zip(found, expected, strict=True):
        for tensor, expected_tensor in zip(step, expected_step, strict=True):
            torch.testing.assert_close(tensor, expected_tensor, rtol=1e-7, atol=1e-9)


def test_the_content_of_the_padding_has_no_effect(dataset):
    def with_random_padding(batch):
        pads = ~batch.counted
        random_items = torch.randint(dataset.num_items, pads.shape, generator=torch.Generator().manual_seed(5))
        items, targets = (torch.where(pads, random_items, kept) for kept in (batch.inputs.items, batch.targets))
        inputs = JaggedBatch(items, batch.inputs.offsets, batch.inputs.plan)
        return TrainBatch(inputs, targets, False, counted=batch.counted)

    config = make_config("hstu", **PLAIN, time_bias=True)
    runs = [float64_training(config, dataset) for _ in range(3)]
    batches = [
        fixed_batches(runs[0]),
        fixed_batches(runs[1], with_random_padding),
        fixed_batches(runs[2], with_random_padding, extra=37),
    ]
    expected, *changed = [losses_and_gradients(*pair) for pair in zip(runs, batches, strict=True)]
    for steps in changed:
        for step, expected_step in zip(steps, expected, strict=True):
            torch.testing.assert_close(step, expected_step, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("knobs", [
    {"schedule": "cosine", "warmup_epochs": 0.5, "ema_decay": 0.9, "max_norm": 0.2},
    {"optimizer": "adamw", "weight_decay": 0.1, "grad_clip": 0.5, "embedding_l2": 0.01},
], ids=str)  # fmt: skip
def test_epochs_of_fixed_steps_train_the_same_model_as_plain_steps(knobs, dataset):
    config = make_config("sasrec", **PLAIN, **knobs, lr=0.01, epochs=2)
    plain, fixed = float64_training(config, dataset), float64_training(config, dataset)
    fixed.fixed_steps = FixedSteps(fixed.batches, ())
    for _ in range(2):
        assert fixed.epoch() == pytest.approx(plain.epoch(), rel=1e-6)
    assert fixed.step == plain.step and not torch.equal(*fixed.fixed_steps.batches.rates)
    with plain.evaluated_weights(), fixed.evaluated_weights():
        for weights, expected in zip(fixed.model.parameters(), plain.model.parameters(), strict=True):
            torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)  # rates are float32 on the device


class Recorder(TorchDispatchMode):
    """Records every operation with the shapes of its results."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        shapes = [tuple(leaf.shape) for leaf in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(leaf)]
        self.operations.append((str(func), shapes))
        return result


WAITS = ("_local_scalar_dense", "nonzero", "_unique", "unique", "bincount")


def recorded_steps(training, num_steps=3):
    """The operations of each of a few steps with the same number of tokens."""
    steps = FixedSteps(training.batches, ())
    largest = max(s.num_tokens for s in steps.batches.shuffle([(1.0, 0.1)] * training.batches.num_batches))
    found = []
    steps._run(largest, training.take_step)  # fills the caches of the process, as the steps before a capture do
    for _ in range(num_steps):
        with Recorder() as recorder:
            steps._run(largest, training.take_step)
        found.append(recorder.operations)
    return found


@pytest.mark.parametrize("knobs", [
    *CAPTURABLE, {"ema_decay": 0.9, "grad_clip": 1.0, "max_norm": 0.1, "embedding_l2": 1e-3, "dropout": 0.2},
    {"token_dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1, "ffn": "swiglu"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_every_step_runs_the_same_operations_on_the_same_shapes(backbone, knobs, dataset, monkeypatch):
    monkeypatch.setattr(linear_cross_entropy, "_is_safe", lambda *_: False)  # as on a GPU
    monkeypatch.setattr(PackingPlan, "longest", None)  # as on a GPU
    training = Training(make_config(backbone, **{**PLAIN, **knobs}), dataset, 0, CPU)
    training.model.train()
    first, *others = recorded_steps(training)
    assert len(first) > 50 and all(other == first for other in others)
    on_a_gpu = {"bincount"} if knobs.get("time_bias") else set()  # a GPU runs another operation instead
    waits = {name for name, _ in first if any(word in name.split(".") for word in WAITS)}
    assert {name.split(".")[1] for name in waits} <= on_a_gpu


@pytest.mark.parametrize(("knobs", "num_items", "reason"), [
    ({"augmentation": "crop"}, 100, "drawn on the host"),
    ({"contrastive_weight": 0.1}, 100, "views"),
    ({}, 1_000_000, "row-sparse"),
    ({"max_len": 4096, "batch_size": 512}, 100, "4096 need 8589934592 pairs"),
    ({"max_len": 200, "batch_size": 1024, "num_blocks": 16}, 100, "200 need 655360000 pairs"),
    ({"augmentation": "crop", "augmentation_share": 0.0}, 100, None),
    ({"loss": "full_softmax"}, 1_000_000, None),
    ({"max_len": 200, "batch_size": 1024, "num_heads": 4}, 100, None),
], ids=str)  # fmt: skip
def test_the_obstacle_to_a_capture_is_named(knobs, num_items, reason):
    found = capture_obstacle(make_config("sasrec", **knobs), num_items)
    assert found is None if reason is None else reason in found


def test_shapes_change_between_steps_with_row_sparse_gradients(dataset, monkeypatch):
    monkeypatch.setattr(item_table, "ROW_SPARSE_ABOVE", 10)
    training = Training(make_config("sasrec", **PLAIN), dataset, 0, CPU)
    first, *others = recorded_steps(training)
    assert all(other != first for other in others)


def test_an_epoch_needs_few_shapes(dataset):
    sizes = {padded_size(size) for size in range(1024, 2048)}
    assert len(sizes) <= 9 and all(size <= padded_size(size) <= 1.125 * size + 1 for size in range(1, 5000))
    training = Training(make_config("sasrec", **PLAIN), dataset, 0, CPU)
    shapes = FixedSteps(training.batches, ()).batches.shuffle([(1.0, 0.0)] * training.batches.num_batches)
    assert sum(shape.num_targets for shape in shapes) == training.batches.lengths.sum()
    assert len({shape.num_tokens for shape in shapes}) <= 3 < len(shapes)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("knobs", [{}, *CAPTURABLE[1:], {"dropout": 0.3, "ema_decay": 0.9}], ids=str)
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_captured_steps_have_the_losses_of_the_same_steps_without_capture(backbone, knobs, dataset):
    config = make_config(backbone, **{**PLAIN, **knobs}, epochs=4)
    captured, plain = (Training(config, dataset, 0, torch.device("cuda")) for _ in range(2))
    assert captured.fixed_steps and plain.fixed_steps
    plain.fixed_steps._run = plain.fixed_steps._step  # the same shapes and draws, without graphs
    torch.cuda.manual_seed(1)
    found = [captured.epoch() for _ in range(4)]
    torch.cuda.manual_seed(1)
    assert found == pytest.approx([plain.epoch() for _ in range(4)], rel=1e-3)  # atomic additions have no fixed order
    assert any(captured.fixed_steps.graphs.values()) and found[-1] < found[0]


@pytest.mark.gpu
@needs_gpu
def test_captured_steps_never_wait_for_the_device(dataset):
    wide = {"batch_size": 2048, "supervision": "last", "window_stride": 1}  # thousands of rows are added into a table
    config = make_config("hstu", **{**PLAIN, **wide}, time_bias=True)
    training = Training(config, dataset, 0, torch.device("cuda"))
    for _ in range(3):
        training.epoch()
    rates = [(1.0, 0.0)] * training.batches.num_batches
    shapes = training.fixed_steps.batches.shuffle(rates)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for shape in shapes:
            training.fixed_steps._run(shape.num_tokens, training.take_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_training_on_a_gpu_reaches_the_loss_of_a_cpu_within_a_gibibyte(dataset):
    config = make_config("sasrec", **{**PLAIN, "lr": 0.01}, epochs=6)
    torch.cuda.reset_peak_memory_stats()
    on_gpu, on_cpu = (fit(config, dataset, 0, device) for device in (torch.device("cuda"), CPU))
    assert on_gpu.curve[-1].loss == pytest.approx(on_cpu.curve[-1].loss, rel=0.05)
    assert 0 < torch.cuda.max_memory_allocated() < 1 << 30
