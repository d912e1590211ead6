"""Which CPU trains with products of bfloat16, and that such trainings are reproducible and told apart from others."""

from pathlib import Path

import pytest
import torch

from virtualmle.data.prepared import PreparedDataset
from virtualmle.kernels.losses.linear_cross_entropy_bfloat16 import is_available
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.training import pipeline, products
from virtualmle.training.checkpoint import copy_weights
from virtualmle.training.errors import StateError
from virtualmle.training.judging import Judging
from virtualmle.training.products import FLOAT32_CPU, has_bfloat16_instructions, trains_in_bfloat16
from virtualmle.training.trainer import FitResult, fit

CPU = torch.device("cpu")
torch.set_num_threads(1)
needs_bfloat16 = pytest.mark.skipif(not is_available(), reason="torch multiplies no bfloat16 on this CPU")


@pytest.fixture(scope="module")
def dataset(tiny_dataset_dir: Path) -> PreparedDataset:
    return PreparedDataset.load(tiny_dataset_dir)


def small(**knobs: object) -> TrialConfig:
    defaults = {"loss": "full_softmax", "hidden_dim": 16, "epochs": 3, "batch_size": 64}
    return make_config("sasrec", **{**defaults, **knobs})


def equal(one: FitResult, other: FitResult) -> bool:
    first, second = copy_weights(one.model), copy_weights(other.model)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("flags", "expected"), [
    pytest.param("flags\t\t: fpu avx512f avx512_bf16 vaes", True, id="avx512-bf16"),
    pytest.param("flags\t\t: fpu amx_bf16 amx_tile", True, id="amx"),
    pytest.param("flags\t\t: fpu avx2 avx512f avx512_fp16 amx_tile", False, id="neither"),
    pytest.param("bugs\t\t: avx512_bf16", False, id="not-a-flag"),
    pytest.param("Features\t: fp asimd bf16", False, id="arm"),
])  # fmt: skip
def test_the_instructions_are_read_from_the_processors_flags(flags: str, expected: bool, tmp_path: Path) -> None:
    processors = tmp_path / "cpuinfo"
    processors.write_text(f"processor\t: 0\n{flags}\n\nprocessor\t: 1\n{flags}\n", encoding="utf-8")
    assert has_bfloat16_instructions(processors) is expected


def test_a_system_without_a_list_of_processors_has_no_such_instructions(tmp_path: Path) -> None:
    assert not has_bfloat16_instructions(tmp_path / "absent")


@pytest.mark.parametrize(("device", "loss", "hardware", "expected"), [
    ("cpu", "full_softmax", True, True),
    ("auto", "full_softmax", True, True),
    ("auto", "sampled_softmax", True, False),
    (FLOAT32_CPU, "full_softmax", True, False),
    ("cpu", "full_softmax", False, False),
])  # fmt: skip
def test_only_the_full_softmax_on_such_a_processor_uses_them(
    device: str, loss: str, hardware: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "has_bfloat16_instructions", lambda: hardware)
    assert trains_in_bfloat16(device, loss) is expected
    precision = pipeline.loss_precision(device, pipeline.set_up_device(device, 1), small(loss=loss))
    assert precision == ("bf16" if expected and is_available() else "ieee")


@needs_bfloat16
def test_training_is_reproducible_and_close_to_float32(dataset: PreparedDataset) -> None:
    first, second, exact = (fit(small(), dataset, 0, CPU, precision=name) for name in ("bf16", "bf16", "ieee"))
    assert equal(first, second) and not equal(first, exact)
    for epoch, other in zip(first.curve, exact.curve, strict=True):
        assert epoch.loss == pytest.approx(other.loss, rel=2e-3)


@needs_bfloat16
def test_a_state_resumes_bit_for_bit_and_only_with_the_same_products(dataset: PreparedDataset, tmp_path: Path) -> None:
    state, whole = tmp_path / "state", fit(small(), dataset, 0, CPU, precision="bf16")
    calls = []

    def race(*_: object) -> None:
        calls.append(state.read_bytes() if state.exists() else b"")  # called before the epoch's state is written

    fit(small(), dataset, 0, CPU, save_to=state, save_every=0, judging=Judging(race=race), precision="bf16")
    state.write_bytes(calls[1])
    assert equal(whole, fit(small(), dataset, 0, CPU, resume_from=state, precision="bf16"))
    with pytest.raises(StateError, match="belongs to another"):
        fit(small(), dataset, 0, CPU, resume_from=state)
