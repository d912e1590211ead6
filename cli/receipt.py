"""`virtualmle sessions receipt`: the signed receipt of a session, for another machine."""

from pathlib import Path
from typing import Annotated

import typer

from .memory import existing_memory
from .options import HERE, Home
from .sessions import Session


def receipt(
    session: Session,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write it.", show_default="standard output")
    ] = None,
    home: Home = HERE,
) -> None:
    """Write the signed receipt of a frozen or ended session.

    After the freeze it states the choice: give it away before the look, and no other choice can be claimed later. After
    the look it also states the test result. `virtualmle verify` checks it on any machine.

    Example: virtualmle sessions receipt demo-sasrec-1 --out receipt.json
    """
    from ..data.atomic import write_bytes
    from ..data.errors import HomeError
    from ..examiner.receipts import to_bytes
    from ..tools.receipts import receipt_of

    with existing_memory(home) as memory:
        content = to_bytes(receipt_of(home, memory.sessions.get(session)))
    if out is None:
        print(content.decode(), end="")
        return
    try:
        write_bytes(out, content)
    except OSError as error:
        raise HomeError(f"{str(out)!r} cannot be written ({error.strerror}); choose another file") from None
    print(f"wrote the receipt of {session} to {out}; check it anywhere with: virtualmle verify {out}")
