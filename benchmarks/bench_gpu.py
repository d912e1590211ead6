"""On a GPU: a default 20-epoch trial, a padded eager loop beside it, and a step over a million items.

    python benchmarks/bench_gpu.py beauty.tsv.gz
    python benchmarks/bench_gpu.py --cpu-smoke        # the same code on a tiny log, without a GPU

The padded loop is the way research code does it, written here from the papers' formulas: every sequence padded to
max_len, one tensor op after the other. Prints a table and one JSON line; without a GPU it says so and ends.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from torch import Tensor, nn

from virtualmle.data.demo import generate_demo
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log, read_log
from virtualmle.models.batch import make_batch
from virtualmle.models.build import build_model
from virtualmle.models.config import TrialConfig, make_config
from virtualmle.training.objective import Objective
from virtualmle.training.optimizer import FusedAdam
from virtualmle.training.trainer import Training, fit


class PaddedHSTU(nn.Module):
    """One HSTU block on (batch, max_len) padded items, id 0 = padding, all pairs computed."""

    def __init__(self, config: TrialConfig, num_items: int) -> None:
        super().__init__()
        self.config, width = config, config.num_heads * config.linear_dim
        self.items = nn.Embedding(num_items + 1, config.hidden_dim, padding_idx=0)
        self.places = nn.Embedding(config.max_len, config.hidden_dim)
        self.uvqk = nn.Linear(config.hidden_dim, 2 * width + 2 * config.num_heads * config.attention_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(2 * config.max_len - 1))
        self.out = nn.Linear(width, config.hidden_dim)

    def forward(self, items: Tensor) -> Tensor:
        config, (batch, length) = self.config, items.shape
        there = (items > 0)[..., None]
        steps = torch.arange(length, device=items.device)
        x = (self.items(items) * config.hidden_dim**0.5 + self.places(steps)) * there
        width = config.num_heads * config.linear_dim
        attention = config.num_heads * config.attention_dim
        u, v, q, k = F.silu(self.uvqk(F.layer_norm(x, x.shape[-1:]))).split([width, width, attention, attention], -1)
        q, k, v = (part.view(batch, length, config.num_heads, -1) for part in (q, k, v))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) + self.bias[steps[None] - steps[:, None] + config.max_len - 1]
        weights = F.silu(scores) / config.max_len * torch.ones(length, length, device=items.device).tril()
        attended = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
        gated = F.dropout(u * F.layer_norm(attended, attended.shape[-1:]), config.dropout, self.training)
        return (self.out(gated) + x) * there


def padded_epoch(training: Training, model: PaddedHSTU, optimizer: torch.optim.Optimizer) -> None:
    """One epoch over the same examples in the same order of magnitude of work, padded and eager."""
    config = training.config
    for batch in training.batches.epoch():
        lengths = batch.inputs.offsets.diff().to(training.device)
        inside = torch.arange(config.max_len, device=training.device)[None] < lengths[:, None]
        items, targets = (torch.zeros_like(inside, dtype=torch.int64) for _ in range(2))
        items[inside], targets[inside] = batch.inputs.items + 1, batch.targets + 1
        states = F.normalize(model(items), dim=-1)
        negatives = torch.randint(1, training.model.num_items + 1, (config.num_negatives,), device=training.device)
        vectors = F.normalize(model.items(negatives), dim=-1)
        own = (states * F.normalize(model.items(targets), dim=-1)).sum(-1, keepdim=True)
        logits = torch.cat((own, states @ vectors.T), -1) / config.temperature  # (batch, max_len, 1 + m)
        loss = ((logits.logsumexp(-1) - logits[..., 0]) * inside).sum() / inside.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds, the device waited for."""
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def large_catalogue_step(device: torch.device, num_items: int) -> float:
    """Median seconds of a sampled-softmax step: forward, backward, and an update of the rows used alone."""
    config = make_config("hstu", hidden_dim=64, num_negatives=512)
    model = build_model(config, num_items, 0).to(device).train()
    optimizer = FusedAdam(model, config)
    generator = torch.Generator(device).manual_seed(0)
    counts = type("Catalogue", (), {"num_items": num_items, "items": torch.zeros(1, dtype=torch.int64)})
    objective = Objective(config, counts, device, generator)
    offsets = torch.arange(0, 257 * 9, 9)
    found = []
    for _ in range(8):
        items = torch.randint(num_items, (256 * 9,), generator=generator, device=device)

        def step(items: Tensor = items) -> None:
            optimizer.zero_grad()
            states = model(make_batch(items, offsets, config))
            objective.loss(model.items, states, items.roll(-1)).backward()
            optimizer.step()

        found.append(seconds_of(step, device))
    return sorted(found[2:])[len(found[2:]) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", type=Path)
    parser.add_argument("--cpu-smoke", action="store_true", help="run everything, tiny, on the CPU")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.cpu_smoke:
        print("no CUDA device here: nothing was measured")
        print(json.dumps({"bench": "gpu", "skipped": "no CUDA device"}))
        return
    device = torch.device("cpu" if arguments.cpu_smoke else "cuda")
    if arguments.log:
        log = read_log(arguments.log)
    else:
        frame = generate_demo(num_users=150, num_items=60)
        log = Log(frame, {name: name for name in frame.columns}, len(frame))
    small = {"epochs": 2, "hidden_dim": 16, "num_negatives": 20, "patience": 20}
    config = make_config("hstu", **(small if arguments.cpu_smoke else {"patience": 20}))
    with tempfile.TemporaryDirectory() as folder:
        key = X25519PrivateKey.generate().public_key().public_bytes_raw()
        prepare(log, "log", Path(folder) / "log", PrepareOptions(), key)
        dataset = PreparedDataset.load(Path(folder) / "log")
        training = Training(config, dataset, 0, device)
        padded = PaddedHSTU(config, dataset.num_items).to(device).train()
        optimizer = torch.optim.AdamW(padded.parameters(), lr=config.lr, weight_decay=0)
        seconds_of(training.epoch, device)
        seconds_of(lambda: padded_epoch(training, padded, optimizer), device)
        rounds = [
            (seconds_of(training.epoch, device), seconds_of(lambda: padded_epoch(training, padded, optimizer), device))
            for _ in range(3)
        ]
        ours, theirs = (sorted(column)[1] for column in zip(*rounds, strict=True))
        trial = seconds_of(lambda: fit(config, dataset, 0, device), device)
    record = {
        "bench": "gpu",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, smoke only",
        "torch": torch.__version__,
        "trial_seconds": trial,
        "epoch_seconds": ours,
        "padded_epoch_seconds": theirs,
        "million_item_step_seconds": large_catalogue_step(device, 250_000 if arguments.cpu_smoke else 1_000_000),
        "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
    }
    for name, value in record.items():
        print(f"{name:28}{value}")
    print(f"{'padded / ours':28}{theirs / ours:.1f}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
