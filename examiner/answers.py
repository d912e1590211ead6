"""The holder's side of a sealed choice: examine it, and answer with the signed result.

The holder's own home counts the looks: its ledger has the choices of all homes that seal for this key. A session is
named there SESSION~ORIGIN (`Choice.name`) and has one look; the digest of the choice is kept beside the result, so that
the same bundle gets the same answer again and another choice of that session gets none. If an examiner dies after it
has counted the look, the answer is that there is no result, and the session is void in the home that was tuned.

    vault/choices/SESSION~ORIGIN     the digest of the choice that was or is to be examined, 0600
    vault/revealed/SESSION~ORIGIN.json
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.atomic import write_bytes, write_json
from ..data.errors import SealError
from ..data.sketch import Similarity
from .audit import AuditLog
from .choice import Choice, unpack
from .entries import Draft, digest_of
from .examining import in_progress
from .ledger import Ledger, Look
from .operator_keys import is_signed, sign
from .request import Beside, TestResult, examine, has_looked, read_item_names, read_revealed
from .vault import OWNER_ONLY, OWNER_ONLY_DIRECTORY, Vault, file_exists, read_key

MAX_ANSWER_BYTES = 64 << 20  # the names of items are most of it


class Answer(BaseModel):
    """What the holder answers to a choice."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a later version may say more

    choice: str  # digest of the choice
    fingerprint: str  # of the complete content, 64 hex digits: what the looks are counted by
    result: TestResult | None  # None: the look was used and gave no result
    # of the content, sealed for the holder, in hexadecimal; empty in answers of earlier versions
    sketch: str = Field(default="", pattern=r"^([0-9a-f]{2})*$")
    item_names: dict[int, str] = {}  # original ids of the items without a visible event, by item


@dataclass(frozen=True)
class SealedSketch:
    """The sketch of an answer, for the ledger of a home that cannot open it and so compares it with no other."""

    content: bytes

    def sealed(self, fingerprint: str) -> bytes:
        """The sketch as the ledger keeps it; the holder's examiner has bound it to the fingerprint."""
        del fingerprint
        return self.content

    def similarity(self, sealed: bytes, fingerprint: str) -> Similarity | None:
        """Unknown without the private key; the holder's ledger compares it, and the result has its note."""
        del sealed, fingerprint
        return None


class SignedAnswer(BaseModel):
    """The file that goes back: the answer as JSON text, and the signature over this text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signed: str
    signature: str  # hexadecimal

    def answer(self) -> Answer:
        """The answer, without a check of the signature."""
        return Answer.model_validate_json(self.signed)


def reveal_choice(home: Path, bundle: Path, key_file: Path, timeout: float) -> tuple[Choice, SignedAnswer]:
    """Examine the choice in `bundle` with the private key in `key_file`, counting the look in the holder's `home`.

    A second call with the same bundle returns the same answer; after a look that gave no result, an answer without one.
    Raises SealError if the bundle is damaged, the key does not fit, an examiner is running, or the session has used its
    look for another choice; and whatever `examine` raises.
    """
    vault = Vault(home)
    private_key = read_key(key_file)
    with tempfile.TemporaryDirectory(dir=vault.create_directory(), prefix=".choice.") as folder:
        choice = unpack(bundle, Path(folder))
        _bind(vault, choice, has_looked(home, choice.name))
        result = _result(home, choice, Path(folder), timeout, key_file)
    look = Ledger(vault.directory).find(choice.name)
    if look is None:
        raise SealError(f"the ledger of {str(home)!r} lacks the look of {choice.name}; restore it")
    _log_end(vault, look, result)
    answer = Answer(
        choice=choice.digest,
        fingerprint=look.fingerprint,
        result=result,
        sketch=Ledger(vault.directory).sealed_sketch(choice.name).hex(),
        item_names=read_item_names(home, choice.name),
    )
    text = json.dumps(answer.model_dump(), sort_keys=True)
    return choice, SignedAnswer(signed=text, signature=sign(private_key, text.encode()).hex())


def _result(home: Path, choice: Choice, folder: Path, timeout: float, key_file: Path) -> TestResult | None:
    """The result of the look, which is taken now unless it was used before; None if it was used without a result."""
    if in_progress(home, choice.name):  # asked before the result, which may come after it
        raise SealError(f"the examiner of {choice.name} is still running; call reveal again in a minute")
    result = read_revealed(home, choice.name)
    if result is not None or has_looked(home, choice.name):
        return result
    models = [folder / each for each in choice.models]
    beside = Beside(choice.beside, [folder / each for each in choice.beside_models]) if choice.beside else None
    return examine(
        home, choice.name, choice.trial, models, folder / choice.dataset, timeout, key_file, beside=beside,
        is_packed=True,
    )  # fmt: skip


def _log_end(vault: Vault, look: Look, result: TestResult | None) -> None:
    """Record the number of a look and its result in the holder's audit log, once."""
    log = AuditLog(vault.directory)
    if not any(entry.session == look.session and entry.kind in ("revealed", "void") for entry in log.entries()):
        digest = {"result": digest_of(result.model_dump())} if result else {}
        body = {"look": look.look, "is_here": True, **digest}
        log.append(Draft(kind="revealed" if result else "void", session=look.session, body=body))


def _bind(vault: Vault, choice: Choice, is_used: bool) -> None:
    """Record which choice of a session is examined; after its look, refuse every other one."""
    path = vault.directory / "choices" / choice.name
    path.parent.mkdir(exist_ok=True, mode=OWNER_ONLY_DIRECTORY)
    if not is_used:
        write_bytes(path, choice.digest.encode(), OWNER_ONLY)
    elif not file_exists(path) or path.read_bytes() != choice.digest.encode():
        raise SealError(
            f"session {choice.name} has used its one look for another choice; a session is frozen once, so this bundle "
            "was changed or packed from a changed home"
        )


def write_answer(path: Path, answer: SignedAnswer) -> None:
    """Write the answer atomically. Raises SealError."""
    try:
        write_json(path, answer.model_dump(), OWNER_ONLY)
    except OSError as error:
        raise SealError(f"{str(path)!r} cannot be written ({error.strerror}); choose another path with --out") from None


def read_answer(path: Path, verifying: bytes | None) -> Answer:
    """Read an answer and check its signature; without a verifying key, the signature is not checked.

    Raises SealError if the file is damaged or the holder of the key has not signed it.
    """
    try:
        with path.open("rb") as file:
            found = SignedAnswer.model_validate_json(file.read(MAX_ANSWER_BYTES))
        answer, signature = found.answer(), bytes.fromhex(found.signature)
    except OSError as error:
        raise SealError(f"{str(path)!r} cannot be read ({error.strerror}); check the path") from None
    except (ValidationError, ValueError):
        raise SealError(f"{str(path)!r} is not an answer of `virtualmle reveal`; ask its holder again") from None
    if verifying is not None and not is_signed(verifying, signature, found.signed.encode()):
        raise SealError(
            f"{str(path)!r} is not signed by the holder of this home's key, or was changed; ask its holder again"
        )
    return answer
