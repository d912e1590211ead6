"""`virtualmle verify`: check the receipt of a session, offline and without the home that issued it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .log_options import LOG, LogReading, columns_by_these_options, reads_a_log
from .options import Json

if TYPE_CHECKING:
    from ..examiner.receipt_checks import Check
    from ..examiner.receipts import Receipt

MAX_BYTES = 256 * 2**20


@reads_a_log
def verify(
    receipt: Annotated[Path, typer.Argument(metavar="RECEIPT", help="The file that `sessions receipt` wrote.")],
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="HEX", help="The public key that must have signed it, as `virtualmle doctor` prints it."
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="FILE", help=f"The raw log, which is prepared again and compared. {LOG}"),
    ] = None,
    *,
    rows: LogReading,
    as_json: Json = False,
) -> None:
    """Check a receipt, on any machine.

    Checks the signature, the excerpt of the audit log, and the commitments: that test set and choice were fixed before
    the look, and that the result is the recorded one. With --log, its owner also checks that the test targets are those
    of this log. Exits with 1 if a check fails.

    Example: virtualmle verify receipt.json

    With the raw log: virtualmle verify receipt.json --log office.tsv.gz
    """
    from ..examiner.receipt_checks import check_receipt
    from ..examiner.receipts import parse

    found = parse(_content(receipt))
    checks = check_receipt(found, key)
    if log is not None:
        checks.append(_compared(found, log, rows))
    if as_json:
        holds = all(check.holds for check in checks)
        about = {"session": found.session, "stage": found.stage, "dataset": found.dataset.get("dataset")}
        print(json.dumps({**about, "holds": holds, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        _print(found, checks)
    if not all(check.holds for check in checks):
        raise typer.Exit(1)


def _content(path: Path) -> bytes:
    from ..data.errors import SealError

    try:
        if path.stat().st_size > MAX_BYTES:
            raise SealError(f"{str(path)!r} is too large for a receipt; check the path")
        return path.read_bytes()
    except OSError as error:
        raise SealError(f"the receipt {str(path)!r} cannot be read ({error.strerror}); check the path") from None


def _compared(receipt: "Receipt", file: Path, rows: LogReading) -> "Check":
    """Prepare the raw log as the receipt says, in memory, and compare."""
    from pydantic import TypeAdapter, ValidationError

    from ..data.errors import SealError
    from ..data.prepare import committed_targets  # imports polars
    from ..data.prepared import PrepareOptions
    from ..data.readers import read_log
    from ..examiner.receipt_checks import check_targets

    try:
        options = TypeAdapter(PrepareOptions).validate_python(receipt.dataset.get("options"))
    except ValidationError:
        raise SealError("the receipt does not say how its dataset was prepared; a newer version may read it") from None
    with columns_by_these_options():
        log = read_log(file, **_named(vars(rows.reading), receipt.dataset.get("columns", {})), cleaning=rows.cleaning)
    return check_targets(receipt, *committed_targets(log, options))


def _named(reading: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """How the log is read: with the columns of the receipt, unless some are given."""
    return reading if any(reading[role] for role in columns) else {**reading, **columns}


def _print(receipt: "Receipt", checks: "list[Check]") -> None:
    print(f"receipt of session {receipt.session} on {receipt.dataset.get('dataset')}, {receipt.stage}")
    for check in checks:
        print(f"{'ok  ' if check.holds else 'FAIL'}  {check.name}: {check.detail}")
