"""`virtualmle reveal`, `sessions seal-choice` and `sessions bring-back`: the look in operator mode."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .memory import existing_memory
from .options import HERE, Home, Json, open_workspace
from .sessions import Session

if TYPE_CHECKING:
    from ..examiner.answers import Answer
    from ..examiner.choice import Choice
    from ..tools.results import FinalResult


def reveal(
    choice: Annotated[
        str, typer.Argument(metavar="SESSION|FILE", help="A frozen session, or a bundle of `sessions seal-choice`.")
    ],
    key_file: Annotated[Path, typer.Option("--key-file", metavar="FILE", help="The private key of `keygen`.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Of a bundle: the answer.", show_default="beside it, .json"),
    ] = None,
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Take the look of a sealed choice, as the holder of the key.

    Of a SESSION, --home is the home that it was tuned in. Of a bundle, --home is the holder's own home, whose ledger
    counts the looks at the data of everyone who seals for this key; the signed answer goes back to the other machine.

    Example: virtualmle reveal demo-sasrec-1 --home ~/recsys --key-file ~/seal-keys/private_key

    On another machine: virtualmle reveal choice.tar --key-file ~/seal-keys/private_key --out answer.json
    """
    bundle, key = Path(choice).expanduser(), key_file.expanduser()
    if bundle.is_file():
        _reveal_bundle(home, bundle, key, out or bundle.with_suffix(".json"), as_json)
        return
    from ..data.errors import ConfigError
    from ..tools.revealing import reveal as reveal_session

    if out is not None:
        raise ConfigError(f"--out is for a bundle, and there is no file {choice!r}; leave it out, or check the path")
    existing_memory(home).close()
    ws = open_workspace(home)
    with ws.memory:
        result = reveal_session(ws, choice, key)
    _show(home, result, as_json)


def seal_choice(
    session: Session,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The bundle to write.")] = Path("choice.tar"),
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Pack the sealed choice of a frozen session for the holder of the key.

    The bundle has the selected model, its specification and result, and the dataset with its sealed test split; it has
    nothing of memory.db.

    Example: virtualmle sessions seal-choice demo-sasrec-1 --out choice.tar
    """
    from ..tools.revealing import pack_choice

    existing_memory(home).close()
    ws = open_workspace(home)
    with ws.memory:
        packed = pack_choice(ws, session, out.expanduser())
    if as_json:
        print(json.dumps({"file": str(out), "choice": packed.digest, "sealed": packed.sealed_digest}, indent=1))
        return
    print(f"{out}: {packed.trial} of {session}, choice {packed.digest[:16]}")
    print("Its holder runs: virtualmle reveal", out.name, "--key-file private_key --out answer.json")
    print(f"Then, here: virtualmle sessions bring-back {session} answer.json --home {home}")


def bring_back(
    session: Session,
    answer: Annotated[Path, typer.Argument(metavar="FILE", help="The answer of `virtualmle reveal`.")],
    home: Home = HERE,
    as_json: Json = False,
) -> None:
    """Store the answer of the key's holder as the result of a session.

    The answer must be signed by the holder of this home's key and belong to the choice of the session. This home's
    ledger counts the look, too.

    Example: virtualmle sessions bring-back demo-sasrec-1 answer.json
    """
    from ..tools.revealing import bring_back as bring_back_answer

    existing_memory(home).close()
    ws = open_workspace(home)
    with ws.memory:
        result = bring_back_answer(ws, session, answer.expanduser())
    _show(home, result, as_json)


def _reveal_bundle(home: Path, bundle: Path, key_file: Path, out: Path, as_json: bool) -> None:
    from ..examiner.answers import reveal_choice, write_answer
    from ..tools.finalize import EXAMINER_SECONDS

    choice, signed = reveal_choice(home, bundle, key_file, EXAMINER_SECONDS)
    out = out.expanduser()
    write_answer(out, signed)
    answer = signed.answer()
    if as_json:
        shown = {**answer.model_dump(), "sealed": choice.sealed_digest, "answer": str(out)}
        print(json.dumps(shown, indent=1))
        return
    _print_answer(choice, answer)
    print(f"answer: {out}")


def _print_answer(choice: "Choice", answer: "Answer") -> None:
    result = answer.result
    if result is None:
        print(f"{choice.session}: the look was used but gave no result; bring the answer back to close the session")
        return
    print(f"{choice.session}: {choice.trial} on {result.dataset}, {result.num_users} users, look {result.look}")
    for name, value in result.metrics.items():
        print(f"  {name:<10} {value:.4f}" + (f"  default {result.default.metrics[name]:.4f}" if result.default else ""))
    print(f"choice {choice.digest[:16]}, sealed split {choice.sealed_digest[:16]}, content {result.fingerprint_short}")


def _show(home: Path, result: "FinalResult", as_json: bool) -> None:
    from .headless import show_result  # imports the MCP library

    show_result(home, result, as_json)
