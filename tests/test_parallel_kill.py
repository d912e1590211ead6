"""Sessions with two trials at a time, whose servers and clients are killed with SIGKILL at random moments.

A round starts one client per session, as `virtualmle sessions resume`, with a server of its own, and kills the client,
the server or both after a random time: some while they start, most of them from the moment on when a trial of the
round has started, however loaded the machine is. Trials are processes of their own and go on. After every round the
files and memory.db must agree; in the end every session is finalized with one look at the test set.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.quick_home import QUICK_SANDBOX, environment
from tests.waiting import until
from virtualmle.examiner.request import looks
from virtualmle.memory.records import SessionRecord, TrialRecord
from virtualmle.sandbox.action_space import effective
from virtualmle.sandbox.program import seconds_used
from virtualmle.tools.open_session import open_session
from virtualmle.tools.sync import sync_session
from virtualmle.tools.workspace import Settings, Workspace
from virtualmle.training.spec import RESULT
from virtualmle.trials.lease import is_held, read_lease

PARALLEL = 2
BACKBONES = ("sasrec", "hstu")
EARLY = 0.2  # share of the rounds that end while client and server start
EARLY_SECONDS, LATE_SECONDS = 1.0, 2.0  # the longest time from the start, and from the first trial of the round
LAST_SECONDS = 1800.0  # of the run that uses up the budget
TARGETS = ("client", "server", "both")


@dataclass
class Driver:
    """A client of one session, with the server that it starts."""

    process: "subprocess.Popen[bytes]"

    def kill(self, target: str) -> None:
        """Kill the client, its server or both, and then whatever is left of the two."""
        if self.process.poll() is not None:  # it has ended by itself, and its server with it
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            client = psutil.Process(self.process.pid)
            servers = [child for child in client.children() if "serve" in child.cmdline()]
            first = {"client": [client], "server": servers, "both": [client, *servers]}[target]
            for process in first:
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.3)  # a client that lost its server gives up, a server without client too
            for process in (client, *servers):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(timeout=30)


class Home:
    """A home with an open session per backbone; `trials` is the budget of each."""

    def __init__(self, home: Path, trials: int) -> None:
        home.mkdir()
        page = QUICK_SANDBOX.replace("`max_trials` | 2", f"`max_trials` | {trials}").replace(
            "`patience` | 10", f"`patience` | {trials}"
        )
        assert page.count(str(trials)) >= 2
        (home / "SANDBOX.md").write_text(page, encoding="utf-8")
        self.home, self.trials, self.drivers = home, trials, list[Driver]()
        self.ws = Workspace.open(home, settings=Settings(device="cpu", threads=1, parallel=PARALLEL))
        self.sessions = [open_session(self.ws, "demo", backbone).session for backbone in BACKBONES]

    def start(self, session: str) -> Driver:
        """Start a client of the session."""
        command = [sys.executable, "-P", "-m", "virtualmle", "sessions", "resume", session, "--home", str(self.home)]
        command += ["--device", "cpu", "--threads", "1", "--keep-warm", "20", "--agent", "random", "--json"]
        with (self.home / "clients.log").open("ab") as log:
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment()
            )
        self.drivers.append(Driver(started))
        return self.drivers[-1]

    def num_trials(self) -> int:
        return sum(len(self.records(session)) for session in self.sessions)

    def is_open(self) -> bool:
        return any(self.state(session).state == "open" for session in self.sessions)

    def records(self, session: str) -> list[TrialRecord]:
        return self.ws.memory.trials.all(session)

    def state(self, session: str) -> SessionRecord:
        return self.ws.memory.sessions.get(session)

    def close(self) -> None:
        for driver in self.drivers:
            driver.kill("both")
        for session in self.sessions:
            for trial in self.records(session):
                lease = read_lease(self.ws.trial_directory(session, trial.handle))
                if lease is not None and is_held(lease):
                    os.killpg(lease.pid, signal.SIGKILL)
        self.ws.close()


def check(home: Home, session: str) -> None:
    """The invariants, at any moment."""
    folder = home.ws.trial_directory(session, "t001").parent
    on_disk = {path.name for path in folder.glob("t[0-9]*")}  # read first: a trial is in memory.db before it has files
    trials = home.records(session)
    assert on_disk <= {trial.handle for trial in trials}, "a trial on disk that memory.db does not know"
    running = [trial for trial in trials if trial.status == "running"]
    assert len(running) <= PARALLEL and len({trial.place for trial in running}) == len(running)
    assert [trial.number for trial in trials] == [*range(1, len(trials) + 1)] and len(trials) <= home.trials
    assert seconds_used(trials) <= home.state(session).max_train_seconds
    check_nothing_runs_twice(home, session, trials)
    check_order_of_verdicts(trials)


def check_nothing_runs_twice(home: Home, session: str, trials: list[TrialRecord]) -> None:
    counted = [effective(trial.configuration) for trial in trials if trial.status in ("running", "finished")]
    assert all(counted.count(one) == 1 for one in counted), "a configuration was run twice"
    folder = home.ws.trial_directory(session, "t001").parent
    for trial in trials:
        lease = read_lease(folder / trial.handle)
        over = (folder / trial.handle / RESULT).exists()
        if trial.status != "running" and not over:
            assert lease is None or not is_held(lease), f"{trial.handle} is over, but its process runs"
        if trial.status == "finished":
            assert trial.outcome and over
            stored = json.loads((folder / trial.handle / RESULT).read_bytes())["metrics"]
            assert trial.outcome.metrics == stored, "a result was lost or changed"


def check_order_of_verdicts(trials: list[TrialRecord]) -> None:
    """Every verdict was given against the trial that had been kept last when it was given."""
    ended = sorted((trial for trial in trials if trial.outcome), key=lambda trial: trial.order)
    assert [trial.ended for trial in ended] == [*range(1, len(ended) + 1)]
    incumbent = None
    for trial in ended:
        assert trial.outcome is not None
        if trial.outcome.status == "finished":
            assert trial.outcome.incumbent_before == incumbent, f"{trial.handle} was judged against another incumbent"
        incumbent = trial.handle if trial.outcome.verdict == "keep" else incumbent


def play(home: Home, rounds: int, seed: int) -> int:
    """Start and kill for a number of rounds; returns in how many of them two trials of a session were running."""
    generator, together = np.random.default_rng(seed), 0
    for _ in range(rounds):
        drivers = [home.start(session) for session in home.sessions if home.state(session).state == "open"]
        early = generator.random() < EARLY
        if drivers and not early:
            known = home.num_trials()
            until(lambda known=known: home.num_trials() > known or not home.is_open())
        end = time.monotonic() + generator.uniform(0.0, EARLY_SECONDS if early else LATE_SECONDS)
        most = 0
        while time.monotonic() < end:
            for session in home.sessions:
                most = max(most, len(home.ws.memory.trials.running(session)))
                check(home, session)
            time.sleep(0.05)
        together += most == PARALLEL
        for driver in drivers:
            driver.kill(str(generator.choice(TARGETS)))
        for session in home.sessions:
            check(home, session)
    return together


def finish(home: Home) -> None:
    """Let every session end undisturbed, and check that nothing was lost."""
    assert not [look for look in looks(home.home) if home.state(look.session).state == "open"]
    for session in home.sessions:
        home.start(session).process.wait(timeout=LAST_SECONDS)
        check(home, session)
        trials = home.records(session)
        assert sync_session(home.ws, session) == [] and all(trial.status != "running" for trial in trials)
        assert len(trials) == home.trials, "the budget is used to its end"
        assert home.state(session).state == "revealed"
    assert sorted(look.session for look in looks(home.home)) == sorted(home.sessions), "one look per session"


def run(folder: Path, rounds: int, trials: int, seed: int) -> int:
    home = Home(folder / "home", trials)
    try:
        together = play(home, rounds, seed)
        finish(home)
        return together
    finally:
        log = folder / "home" / "clients.log"
        if log.exists():  # pytest shows it if the test fails
            print(log.read_text(encoding="utf-8", errors="replace")[-4000:])
        home.close()


@pytest.mark.slow
def test_two_sessions_of_two_trials_survive_kills_at_random_moments(tmp_path: Path) -> None:
    run(tmp_path, rounds=3, trials=6, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_sessions_of_two_trials_survive_a_hundred_rounds(tmp_path: Path) -> None:
    together = run(tmp_path, rounds=100, trials=120, seed=1)
    assert together >= 5, "two trials ran together in some rounds"  # how many depends on the load of the machine
