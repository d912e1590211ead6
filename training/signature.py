"""Signatures in a trial's directory: which process wrote its files, and that they have not been changed since.

Each session has a key of its own, derived from the vault's. The server signs what a trial is asked for, and the worker
checks that before it runs; the worker signs what it has measured, and whoever uses a file checks it before. Three files
are added to those of `spec.py`:

    spec_signature.json    by the server, before the start: the bytes of the spec and of the race
    signature.json         by the worker, after its last file but before result.json, whose hash it contains: a reader
                           that finds a result also finds its signature
    state_signature.json   by the worker, before each training state: the hashes of the last state and of this one, so
                           that a worker that is killed between the two files leaves a state that is signed

Paths are not signed, because a home may be moved and a node of a cluster has other ones; hashes of files are. This
module does not import torch. Not covered: a process that has the key.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.atomic import write_bytes
from ..data.errors import TrialError
from ..data.hashing import sha256_of, stored_sha256
from ..data.mac import Fact, Signature, is_valid, sign
from .spec import (
    CHECKPOINT,
    EPOCH_RANKS,
    INCUMBENT_RANKS,
    JUDGED_RANKS,
    RACE,
    RANKS,
    RESULT,
    SPEC,
    STATE,
    SWEPT_RANKS,
    USERS,
    TrialResult,
    TrialSpec,
    encoded,
    read_spec,
    read_trial_file,
    write_model,
)

SIGNATURE, SPEC_SIGNATURE, STATE_SIGNATURE = "signature.json", "spec_signature.json", "state_signature.json"
RESCORED = (RESULT, CHECKPOINT, USERS, EPOCH_RANKS)  # what a worker reads of the trial that it re-scores
MEASURED = (RANKS, SWEPT_RANKS, EPOCH_RANKS, JUDGED_RANKS, USERS, CHECKPOINT)  # what a worker writes before its result

Signer = Literal["worker", "server", "adoption"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrialSignature(_Frozen):
    """The content of signature.json: whose files these are, and their SHA-256."""

    session: str
    trial: str
    dataset_id: str  # of the dataset that was read; empty if none was, or if it is not known
    spec: str  # as `spec_hash` returns it
    by: Signer  # server: files of another trial, or of a replay table; adoption: by an earlier version, unchecked
    files: dict[str, str]  # SHA-256 by file name
    mac: str

    @property
    def signature(self) -> Signature:
        """The MAC."""
        return Signature(self.mac)

    def fits(self, key: bytes) -> bool:
        """Whether the MAC is that of the other fields."""
        return is_valid(self.signature, key, "trial", self.files, self.model_dump(exclude={"files", "mac"}))


class _FilesSignature(_Frozen):
    files: dict[str, str]
    earlier: str = ""  # of a training state: the SHA-256 of the one before
    mac: str


def spec_hash(spec: TrialSpec) -> str:
    """The SHA-256 of a spec without the paths in it, and without defaults, so that a later version may add fields."""
    fields = spec.model_dump(exclude_defaults=True)
    fields["dataset_dir"] = ""
    for name in {"rescore_from", "resume_from"} & set(fields):
        fields[name] = True
    fields["members"] = [{**member, "directory": ""} for member in fields.get("members", [])]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def write_signed_result(
    directory: Path,
    key: bytes,
    spec: TrialSpec,
    result: TrialResult,
    files: Mapping[str, str],
    *,
    dataset_id: str,
    by: Signer,
) -> None:
    """Write signature.json and then result.json; files: the SHA-256 of all other files that belong to the result."""
    content = encoded(result)
    signed = {**files, RESULT: hashlib.sha256(content).hexdigest()}
    sign_trial(directory, key, spec, signed, dataset_id=dataset_id, by=by)
    write_bytes(directory / RESULT, content)


def sign_trial(
    directory: Path, key: bytes, spec: TrialSpec, files: Mapping[str, str], *, dataset_id: str, by: Signer
) -> Signature:
    """Write signature.json for files with these hashes, result.json among them."""
    facts: dict[str, Fact] = {
        "session": spec.session, "trial": spec.trial, "dataset_id": dataset_id, "spec": spec_hash(spec), "by": by,
    }  # fmt: skip
    signature = sign(key, "trial", files, facts)
    write_model(directory / SIGNATURE, TrialSignature.model_validate({**facts, "files": files, "mac": signature.hex}))
    return signature


def sign_as_it_is(directory: Path, key: bytes, spec: TrialSpec, *, dataset_id: str, by: Signer) -> None:
    """Sign all files of a trial that is over, and its training state, without a check of what they contain."""
    present = [name for name in (*MEASURED, RESULT) if (directory / name).exists()]
    files = {name: sha256_of(directory / name) for name in present}
    sign_trial(directory, key, spec, files, dataset_id=dataset_id, by=by)
    if (directory / STATE).exists():
        StateSigner(directory, key, spec.session)((directory / STATE).read_bytes())


def check_trial(
    directory: Path,
    key: bytes,
    session: str,
    trial: str,
    *,
    dataset_id: str = "",
    names: Collection[str] = (RESULT,),
) -> TrialSignature:
    """The signature of a trial that is over. TrialError unless it is that of `session` and `trial`, and of the files.

    names: the files to check; of those that the trial did not write, only result.json must be there. dataset_id: of the
    dataset that it must have read; empty = any.
    """
    found = _read_signature(directory)
    if not found.fits(key) or (found.session, found.trial) != (session, trial):
        raise _refused(directory, f"{SIGNATURE} is not that of {trial} of session {session}")
    if found.spec != spec_hash(read_spec(directory)):
        raise _refused(directory, f"{SPEC} differs from the one that was run")
    if dataset_id and found.dataset_id not in ("", dataset_id):
        raise _refused(directory, "they are of another dataset")
    for name in {*names, RESULT}:
        if name in found.files and _digest(directory / name) != found.files[name]:
            raise _refused(directory, f"{name} is not the one that was signed")
        if name not in found.files and (name == RESULT or (directory / name).exists()):
            raise _refused(directory, f"{name} was not signed")
    return found


def signed_bytes(directory: Path, name: str, signature: TrialSignature) -> bytes:
    """The content of a file of the trial, read once and compared. TrialError if it is missing or is not as signed."""
    try:
        content = read_trial_file(directory, name)
    except OSError as error:
        raise TrialError(
            f"{directory / name} cannot be read ({error.strerror}); restore the directory or open a new session"
        ) from None
    if hashlib.sha256(content).hexdigest() != signature.files.get(name):
        raise _refused(directory, f"{name} is not the one that was signed")
    return content


def sign_spec(directory: Path, key: bytes, spec: TrialSpec) -> None:
    """Sign what the trial in `directory` is asked for: `spec`, and the race if there is one."""
    files = _asked(directory, spec)
    mac = sign(key, "spec", files, _name(spec)).hex
    write_model(directory / SPEC_SIGNATURE, _FilesSignature(files=files, mac=mac))


def check_spec(directory: Path, key: bytes, spec: TrialSpec) -> None:
    """TrialError unless the server has signed spec and race of the trial in `directory` as they are."""
    found = _read_files_signature(directory / SPEC_SIGNATURE)
    files = _asked(directory, spec)
    if found is None or found.files != files or not is_valid(Signature(found.mac), key, "spec", files, _name(spec)):
        raise TrialError(
            f"{SPEC}, {RACE} or {INCUMBENT_RANKS} of {spec.trial} was changed after the server wrote it, or another "
            f"program wrote it; see who writes to {directory}, and run the trial again"
        )


class StateSigner:
    """Signs the training states of one trial, each before it is written; the one before stays signed."""

    def __init__(self, directory: Path, key: bytes, session: str) -> None:
        self._path = directory / STATE_SIGNATURE
        self._key = key
        self._session = session
        self._last = ""  # SHA-256; not read from the file, which could have been changed meanwhile

    def __call__(self, content: bytes) -> None:
        """Sign `content` as the next state."""
        earlier, self._last = self._last, hashlib.sha256(content).hexdigest()
        files = {STATE: self._last}
        mac = sign(self._key, "state", files, {"session": self._session, "earlier": earlier}).hex
        write_model(self._path, _FilesSignature(files=files, earlier=earlier, mac=mac))


def state_is_signed(path: Path, key: bytes, session: str) -> bool:
    """Whether a worker of the session wrote the training state at `path`; False as well if there is none."""
    found = _read_files_signature(path.with_name(STATE_SIGNATURE))
    if found is None or not path.exists():
        return False
    facts: dict[str, Fact] = {"session": session, "earlier": found.earlier}
    known = (found.files.get(STATE), found.earlier)
    return is_valid(Signature(found.mac), key, "state", found.files, facts) and _digest(path) in known


def _asked(directory: Path, spec: TrialSpec) -> dict[str, str]:
    """SHA-256 by name of what a trial is asked for; of the spec it is that of the value, not of the disk."""
    files = {name: sha256_of(directory / name) for name in (RACE, INCUMBENT_RANKS) if (directory / name).exists()}
    return {**files, SPEC: hashlib.sha256(encoded(spec)).hexdigest()}


def _name(spec: TrialSpec) -> dict[str, Fact]:
    return {"session": spec.session, "trial": spec.trial}


def _read_signature(directory: Path) -> TrialSignature:
    try:
        return TrialSignature.model_validate_json(read_trial_file(directory, SIGNATURE))
    except (OSError, ValidationError):
        raise TrialError(
            f"the files of {directory.name} have no readable {SIGNATURE}: they were not written by a worker of this "
            "home, or not completely; restore the directory or open a new session"
        ) from None


def _read_files_signature(path: Path) -> _FilesSignature | None:
    try:
        return _FilesSignature.model_validate_json(read_trial_file(path.parent, path.name))
    except (OSError, ValidationError):
        return None


def _digest(path: Path) -> str:
    try:
        return stored_sha256(path)
    except OSError as error:
        raise TrialError(
            f"{path} cannot be read ({error.strerror}); restore the directory or open a new session"
        ) from None


def _refused(directory: Path, what: str) -> TrialError:
    return TrialError(
        f"the files of {directory.name} were changed after the worker wrote them: {what}; restore the directory, or "
        "run the trial again in a new session"
    )
