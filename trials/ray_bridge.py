"""The bridge between a session on this machine and a Ray cluster: `python -P -m virtualmle.trials.ray_bridge …`.

It starts a detached actor (`ray_node.py`) for each trial of the session that has a ray.json, and attends to each in a
thread (`ray_trial.py`). The arguments are its own directory, SESSION/ray/KEY, the address of the cluster, and the file
descriptor of the lock that the launcher took for it (`ray_launcher.py`).

If the bridge dies, its trials go on, and the next bridge finds the actors by their names. If the cluster cannot be
reached, the trials end as crashes that the machine caused. The bridge exits when the session has had none for a while.
"""

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.atomic import write_bytes
from ..data.errors import TrialError, VirtualMLEError
from ..data.locks import take_lock
from ..data.mac import KEY_BYTES
from ..training.spec import RESULT
from .launcher import STOP, write_stop
from .ray_data import Datasets
from .ray_launcher import RAY, read_placement, read_submission
from .ray_trial import Attendant

NAMESPACE = "virtualmle"
PID = "pid"
LINGER_SECONDS = 60.0  # without trials; connecting again takes two seconds
SCAN_SECONDS = 0.2
CONNECT_SECONDS = 60.0  # Ray tries for minutes if it finds the address of a cluster that is gone
ANSWER_SECONDS = 5.0


class Bridge:
    """Attends to the trials of a session on the cluster at `address`."""

    def __init__(self, session: Path, address: str, key: bytes | None) -> None:
        self._session = session
        self._address = address
        self._key = key
        self._attended: dict[Path, threading.Thread] = {}

    def run(self) -> None:
        """Attend to all trials until there have been none for LINGER_SECONDS, or the session is deleted."""
        ray = self._connect()
        datasets, idle_since = Datasets(ray), time.monotonic()
        while time.monotonic() - idle_since < LINGER_SECONDS and self._session.is_dir():
            for directory in self._unattended():
                thread = threading.Thread(target=self._attend, args=(ray, directory, datasets), daemon=True)
                self._attended[directory] = thread
                thread.start()
            if any(thread.is_alive() for thread in self._attended.values()):
                idle_since = time.monotonic()
            time.sleep(SCAN_SECONDS)

    def _connect(self) -> Any:
        """The module ray, connected to the cluster; ends the trials and this process if that fails."""
        overdue = threading.Timer(CONNECT_SECONDS, self._give_up, [f"no connection within {CONNECT_SECONDS:.0f} s"])
        overdue.daemon = True
        overdue.start()
        try:
            _check_answer(self._address)
            import ray  # noqa: PLC0415 - optional, and the server must not load it

            ray.init(self._address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError, ImportError) as error:
            traceback.print_exc()
            self._give_up(str(error))
        overdue.cancel()
        return ray

    def _unattended(self) -> Iterator[Path]:
        """The trials that no thread attends to, and no bridge has released."""
        for path in sorted(self._session.glob(f"*/{RAY}")):
            directory = path.parent
            if directory in self._attended:
                continue
            try:
                mine = read_submission(directory).address == self._address
            except TrialError:  # damaged: every look at it reports that
                continue
            placement = read_placement(directory)
            if mine and not (placement and placement.released):
                yield directory

    def _attend(self, ray: Any, directory: Path, datasets: Datasets) -> None:
        try:
            Attendant(ray, directory, datasets, self._key).attend()
        except (OSError, VirtualMLEError) as error:  # spec.json or ray.json is damaged
            _end(directory, str(error), lost=False)
        except Exception as error:  # outermost handler of the thread
            traceback.print_exc()
            if isinstance(error, ray.exceptions.RayError):  # the connection is broken: the next bridge connects again
                sys.stderr.flush()
                os._exit(1)
            _end(directory, f"internal error: {type(error).__name__}: {error}", lost=False)

    def _give_up(self, reason: str) -> None:
        """End all trials because there is no cluster, and this process."""
        cause = f"the Ray cluster at {self._address} cannot be reached: {' '.join(reason.split())}"
        for directory in self._unattended():
            _end(directory, cause, lost=False)
        sys.stderr.flush()
        os._exit(1)


def _end(directory: Path, cause: str, *, lost: bool) -> None:
    if not any((directory / name).exists() for name in (STOP, RESULT)):
        write_stop(directory, "crashed", cause, machine_fault=True, lost=lost)


def _check_answer(address: str) -> None:
    """Raise ConnectionError if nothing answers at HOST:PORT for ANSWER_SECONDS."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # auto
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        except OSError as error:
            if time.monotonic() > end:
                raise ConnectionError(f"nothing answers there ({error})") from None
            time.sleep(SCAN_SECONDS)
        else:
            return


def main(folder: Path, address: str, lock: int, key: bytes | None) -> None:
    """Hold the lock, write the process id beside it, and run the bridge."""
    os.set_inheritable(lock, False)
    if not take_lock(lock):  # on file systems where the lock did not pass to this process, and another has it now
        return
    write_bytes(folder / PID, f"{os.getpid()}\n".encode())
    Bridge(folder.parent.parent, address, key).run()


if __name__ == "__main__":
    given = sys.stdin.buffer.read(KEY_BYTES)  # of the session, from the launcher
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), given if len(given) == KEY_BYTES else None)
