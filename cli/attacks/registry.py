"""All attacks, in the order in which they are tried, with their rows in docs/security.md."""

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from ...data.errors import ConfigError, VirtualMLEError
from . import files, looks, records, tools, wire
from .agent import hostile_agent
from .attack import Attack
from .scene import Examine, Scene, build_scene, short
from .verdict import Verdict, fell

Report = Callable[[Attack, Verdict], None]
ToolRow = tuple[str, str, Callable[[Scene, tools.Live], Verdict]]
HttpRow = tuple[str, str, Callable[[wire.HttpServer], Verdict]]

SHELL_ATTACKS = (
    Attack("S1", "open the seal with another key", "shell", looks.open_with_another_key, is_quick=True),
    Attack("S3", "look twice in one session", "shell", looks.look_twice, is_quick=True),
    Attack("S5", "find test events in the files of a home", "shell", files.find_test_times, is_quick=True),
    Attack("5", "read from the catalogue what is bought in test events only", "shell", files.read_late_item_ids,
           is_quick=True),
    Attack("6", "read the home as another user", "shell", files.read_as_another_user, is_quick=True),
    Attack("7a", "forge the sealed test split", "shell", records.forge_the_seal, is_quick=True),
    Attack("7b", "edit a result before it is recorded", "shell", records.edit_a_result),
    Attack("7c", "swap the model that is examined", "shell", records.swap_the_model),
    Attack("7d", "edit the profile of a dataset", "shell", records.edit_the_profile, is_quick=True),
    Attack("7e", "rewrite a trial in memory.db", "shell", records.rewrite_a_trial, is_quick=True),
    Attack("7f", "open a revealed session again", "shell", records.reopen_a_session),
    Attack("7g", "delete a look from the ledger", "shell", records.forget_a_look, is_quick=True),
    Attack("7h", "delete the ledger", "shell", records.delete_the_ledger, is_quick=True),
    Attack("7i", "edit the revealed test figures", "shell", records.edit_a_revealed_result, is_quick=True),
    Attack("8", "edit a receipt", "shell", records.edit_a_receipt),
    Attack("9", "look at the same data under other names", "shell", looks.look_at_a_near_duplicate),
    Attack("10a", "overwrite the validation targets in mid-session", "shell", files.overwrite_validation_targets),
    Attack("10b", "keep finalize waiting with a foreign process", "shell", looks.keep_finalize_waiting),
    Attack("10c", "put a link in the place of a dataset", "shell", files.link_a_dataset, is_quick=True),
    Attack("12", "finalize without the key, and forge its holder's answer", "shell", looks.finalize_without_the_key,
           is_quick=True),
    Attack("1b", "open sessions without end", "tools", looks.fill_the_sessions),
    Attack("4a", "send lines that no parser accepts", "wire", wire.send_unreadable_lines),
)  # fmt: skip
"""Each of these works on copies of the scratch home."""

TOOL_ATTACKS: tuple[ToolRow, ...] = (
    ("S2", "name paths, seeds, budgets or the test split", tools.ask_for_the_forbidden),
    ("11a", "read the server's secrets in a worker", tools.read_a_worker),
    ("11b", "read the key as a worker", tools.read_the_key_as_a_worker),
    ("3", "hunt for a lucky seed", tools.hunt_for_a_seed),
    ("1a", "read a test result in a second session", tools.read_the_result_in_a_second_session),
    ("2", "bring test figures back through memory", tools.remember_test_figures),
)
HTTP_ATTACKS: tuple[HttpRow, ...] = (
    ("4b", "forge the names of hosts and origins", wire.forge_the_host),
    ("S6", "come without the token", wire.come_without_the_token),
    ("10d", "read the token of the server", wire.read_the_token),
    ("4c", "leave requests half sent", wire.keep_requests_half_sent),
)
NUMBERS = [*(attack.number for attack in SHELL_ATTACKS), *(row[0] for row in (*TOOL_ATTACKS, *HTTP_ATTACKS))]


def try_all(examine: Examine, report: Report, only: Collection[str] = ()) -> list[tuple[Attack, Verdict]]:
    """Try every attack, or those with the numbers `only`; `report` gets each verdict at once.

    Raises VirtualMLEError if the scratch home cannot be built, and ConfigError for an unknown number.
    """
    unknown = set(only) - set(NUMBERS)
    if unknown:
        raise ConfigError(f"{', '.join(sorted(unknown))} is no attack; choose from {', '.join(NUMBERS)}")
    with _scene(examine) as scene:
        tried = _try([attack for attack in SHELL_ATTACKS if attack.number in (only or NUMBERS)], scene, report)
        tried += _over_http([row for row in HTTP_ATTACKS if row[0] in (only or NUMBERS)], scene, report)
        return tried + _over_tools([row for row in TOOL_ATTACKS if row[0] in (only or NUMBERS)], scene, report)


def _over_tools(rows: Sequence[ToolRow], scene: Scene, report: Report) -> list[tuple[Attack, Verdict]]:
    if not rows:
        return []
    home = scene.copy()
    with hostile_agent(home) as agent:
        live = tools.Live(home, agent, scene.session)
        bound = [Attack(number, title, "tools", _with(run, live)) for number, title, run in rows]
        return _try(bound, scene, report)


def _over_http(rows: Sequence[HttpRow], scene: Scene, report: Report) -> list[tuple[Attack, Verdict]]:
    if not rows:
        return []
    with wire.http_server(scene.copy()) as server:
        return _try([Attack(number, title, "wire", _on(run, server)) for number, title, run in rows], scene, report)


def try_quick(examine: Examine, report: Report) -> list[tuple[Attack, Verdict]]:
    """Try the attacks that need no server and no further training, as `doctor` does."""
    with _scene(examine) as scene:
        return _try([attack for attack in SHELL_ATTACKS if attack.is_quick], scene, report)


@contextlib.contextmanager
def _scene(examine: Examine) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="virtualmle-attacks-", ignore_cleanup_errors=True) as folder:
        yield build_scene(Path(folder).resolve(), examine)


def _with(run: Callable[[Scene, tools.Live], Verdict], live: tools.Live) -> Callable[[Scene], Verdict]:
    return lambda scene: run(scene, live)


def _on(run: Callable[[wire.HttpServer], Verdict], server: wire.HttpServer) -> Callable[[Scene], Verdict]:
    return lambda scene: run(server)


def _try(attacks: Sequence[Attack], scene: Scene, report: Report) -> list[tuple[Attack, Verdict]]:
    """Try attacks one after another. One that cannot be set up has fallen: what it would show is not known."""
    tried = []
    for attack in attacks:
        try:
            verdict = attack.run(scene)
        except (VirtualMLEError, OSError) as error:
            verdict = fell(f"could not be tried: {short(' '.join(str(error).split()))}")
        tried.append((attack, verdict))
        report(attack, verdict)
    return tried
