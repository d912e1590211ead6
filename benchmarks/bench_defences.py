"""What all defences together add to a trial: signatures, hashes, audit log, sketches, locks, confinement and masking.

    python benchmarks/bench_defences.py                                  # the size of Amazon Office
    python benchmarks/bench_defences.py --users 500 --items 200 --repeats 3

A log of the demo generator is prepared in a home of its own. Each part runs as often as one trial runs it:

    signatures     server and worker, as `bench_signatures.py` measures them
    arrays         the worker verifies the hashes of the arrays that it reads
    audit log      the entries of admission and verdict, with the hashes of the trial's files
    content        which datasets hold the same content, for the reflection after the trial; their sketches are cached
    lock           the lock of the trial is taken, and asked for three times
    confinement    the worker confines itself with Landlock, in a new process
    masking        the texts of a view with 20 reflections are compared with 500 recorded figures

Medians over repeats in milliseconds: of the clock, with the range, and of the processor, which does not depend on what
else the machine does. Not in the sum: what happens once per dataset or session (preparing, opening, the look).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from bench_signatures import Scene, timed
from record import environment, parser_of

from virtualmle.data.catalogue import Catalogue
from virtualmle.data.demo import generate_demo
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PreparedDataset, PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.examiner.audit import AuditLog
from virtualmle.examiner.entries import Draft
from virtualmle.examiner.vault import Vault
from virtualmle.memory.figures import mask_unverified
from virtualmle.tools.contents import content_in
from virtualmle.tools.recorded_facts import file_hashes
from virtualmle.training.spec import SPEC, write_model
from virtualmle.training.trial_lock import is_worked_on, take

Milliseconds = tuple[float, float]  # by the clock, and of the processor
DATASETS = ("office", "office-again")
CONFINE = """
import json, sys, time
from pathlib import Path
from virtualmle.training.confinement import confine_worker

started, spent = time.perf_counter(), time.process_time()
state = confine_worker(Path(sys.argv[1]))
print(json.dumps([state, 1e3 * (time.perf_counter() - started), 1e3 * (time.process_time() - spent)]))
"""
TEXT = (
    "A larger hidden_dim raised NDCG@10 from 0.0412 to 0.0437 (z = 1.8), while dropout 0.35 cost 0.0011; with 20 "
    "epochs the model had not converged, so the next trial should have 35."
)


class Home:
    """A home with two datasets of one log, an audit log, and the files of a trial."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder = folder
        self.log = AuditLog(Vault(folder).directory)
        frame = generate_demo(arguments.users, arguments.items)
        vault, columns = Vault(folder), {name: name for name in frame.columns}
        for name, size in zip(DATASETS, (frame.height, frame.height - 50), strict=True):
            directory = folder / ".virtualmle" / "data" / name
            directory.parent.mkdir(parents=True, exist_ok=True)
            log = Log(frame.head(size), columns, size)
            prepare(log, name, directory, PrepareOptions(), vault.public_key(), vault.mac_key())
        self.dataset = Catalogue(folder).path(DATASETS[0])
        session = folder / ".virtualmle" / "sessions" / "s-1"
        session.mkdir(parents=True)
        self.trial = Scene(session, arguments.users, arguments.items, arguments.dim)
        self.trial.spec = self.trial.spec.model_copy(update={"dataset_dir": str(self.dataset)})
        write_model(self.trial.directory / SPEC, self.trial.spec)

    def sign_and_check(self) -> None:
        """The signatures of one trial that is compared with ten others."""
        self.trial.ask()
        self.trial.work()
        self.trial.record(10)

    def verify_arrays(self) -> None:
        """The hashes that a worker verifies before each trial; loading the arrays is included."""
        PreparedDataset.load(self.dataset, arrays_only=True)

    def append(self) -> None:
        """The two entries of a trial."""
        self.log.append(Draft(kind="admitted", session="s-1", body={"trial": "t001"}))
        files = file_hashes(self.trial.directory)
        self.log.append(Draft(kind="verdict", session="s-1", body={"trial": "t001", "files": files}))

    def compare(self) -> None:
        """The datasets with the same content."""
        manifest = Catalogue(self.folder).manifest(DATASETS[0])
        content_in(self.folder, manifest.dataset_id)

    def lock(self) -> None:
        """The lock of a trial, and three questions whether it is held."""
        descriptor = take(self.trial.directory)
        for _ in range(3):
            is_worked_on(self.trial.directory)
        if descriptor is not None:
            os.close(descriptor)

    def freshen(self) -> None:
        """Change the times of all files, so that no hash is known from the repeat before."""
        self.trial.freshen()
        for path in self.dataset.iterdir():
            os.utime(path)


def mask() -> None:
    """Mask the texts of a view."""
    known = [number / 9973 for number in range(500)]
    for _ in range(20):
        mask_unverified(TEXT, known)


def confine(directory: Path) -> tuple[str, Milliseconds]:
    """Whether and how fast a new process confines itself as the worker of a trial."""
    command = [sys.executable, "-P", "-c", CONFINE, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    state, wall, spent = json.loads(done.stdout)
    return state, (wall, spent)


def measure(arguments: argparse.Namespace) -> tuple[str, dict[str, list[Milliseconds]]]:
    """How workers are confined here, and milliseconds of each part by repeat."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder).resolve(), arguments)
        steps: dict[str, Callable[[], object]] = {
            "signatures": home.sign_and_check, "arrays": home.verify_arrays, "audit log": home.append,
            "content": home.compare, "lock": home.lock, "masking": mask,
        }  # fmt: skip
        for step in steps.values():  # the first call creates keys and caches
            step()
        parts: dict[str, list[Milliseconds]] = {name: [] for name in (*steps, "confinement")}
        for _ in range(arguments.repeats):
            home.freshen()
            for name, step in steps.items():
                parts[name].append(timed(step))
            state, milliseconds = confine(home.trial.directory)
            parts["confinement"].append(milliseconds)
    repeats = zip(*parts.values(), strict=True)
    parts["all"] = [(sum(wall for wall, _ in each), sum(spent for _, spent in each)) for each in repeats]
    return state, parts


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--users", type=int, default=4905)
    parser.add_argument("--items", type=int, default=2420)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    state, parts = measure(arguments)
    for name, values in parts.items():
        wall, spent = ([pair[n] for pair in values] for n in range(2))
        print(
            f"{name:12} {statistics.median(wall):7.1f} ms ({min(wall):.1f} to {max(wall):.1f})"
            f"   processor {statistics.median(spent):6.1f} ms"
        )
    print(f"confinement: {state}")
    print(json.dumps({"sizes": vars(arguments), "milliseconds": parts, "environment": environment()}, default=str))


if __name__ == "__main__":
    main()
