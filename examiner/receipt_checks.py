"""The checks of a receipt, offline: signature, chain, commitments and their order. Pure; no file is read."""

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..data.commitment import commitment_of
from .entries import Entry, chained, digest_of
from .receipts import Excerpt, Receipt, is_signed
from .request import TestResult

ORDER = ("opened", "frozen", "look", "revealed")


@dataclass(frozen=True)
class Check:
    """One check of a receipt: what was compared, whether it holds, and a sentence."""

    name: str
    holds: bool
    detail: str


def check_receipt(receipt: Receipt, key: str | None = None) -> list[Check]:
    """All checks that need nothing but the receipt; `key`: the public key that must have signed it."""
    entries = [item for item in receipt.log.items if isinstance(item, Entry)]
    own = [entry for entry in entries if entry.session == receipt.session]
    checks = [_signature(receipt, key), _chain(receipt.log), _dataset(receipt, entries), _choice(receipt, own)]
    checks.append(_order(receipt, own))
    if receipt.stage == "revealed":
        checks += [_opening(receipt), _result(receipt, own)]
    return checks


def check_targets(receipt: Receipt, dataset_id: str, digest: str) -> Check:
    """Compare the receipt with the owner's raw log; `dataset_id` and `digest` are what preparing it again gave."""
    if receipt.dataset.get("dataset_id") != dataset_id:
        expected = receipt.dataset.get("dataset_id")
        return Check("log", False, f"the log gives dataset id {dataset_id}, not {expected}: it is another log, or it "
                     "was read with other options")  # fmt: skip
    opening = receipt.result.opening if receipt.result else None
    if opening is None:
        return Check("log", True, "the log gives the dataset id of the receipt; its test targets can be compared once "
                     "the commitment is opened")  # fmt: skip
    if not hmac.compare_digest(opening.targets_digest, digest):
        return Check("log", False, "the test targets of the log are not those that were committed to")
    return Check("log", True, "preparing the log again gives the test targets that were committed to")


def _signature(receipt: Receipt, key: str | None) -> Check:
    if not is_signed(receipt):
        return Check("signature", False, "the receipt was changed after it was signed")
    if key is not None and key.lower() != receipt.public_key:
        return Check("signature", False, f"signed with {receipt.public_key}, not with {key}")
    whose = "the given key" if key else "compare it with the one that `virtualmle doctor` prints in the home"
    return Check("signature", True, f"valid, with key {receipt.public_key} ({whose})")


def _chain(log: Excerpt) -> Check:
    try:
        problem = _broken(log)
    except ValueError:  # a hash that is not hexadecimal
        problem = "a hash of the audit log is damaged"
    shown = sum(isinstance(item, Entry) for item in log.items)
    detail = f"{len(log.items)} entries of the audit log up to entry {log.length}, {shown} of them in full"
    return Check("chain", not problem, problem or detail)


def _broken(log: Excerpt) -> str:
    head, seq = log.before, log.first - 1
    for item in log.items:
        seq += 1
        if isinstance(item, Entry):
            if (item.seq, item.prev) != (seq, head) or not item.fits:
                return f"entry {item.seq} of the audit log does not fit to those before it"
            head = item.hash
        else:
            head = chained(head, item)
    return "" if (seq, head) == (log.length, log.head) else "the audit log does not end with its head"


def _dataset(receipt: Receipt, entries: Sequence[Entry]) -> Check:
    recorded = [entry for entry in entries if entry.kind in ("registered", "replaced")]
    opened = [entry for entry in entries if entry.kind in ("opened", "adopted") and entry.session == receipt.session]
    if not recorded or recorded[0].body != receipt.dataset:
        return Check("test set", False, "the receipt's dataset is not the one that the audit log registered")
    if not opened or opened[-1].body.get("facts", {}).get("dataset_id") != receipt.dataset.get("dataset_id"):
        return Check("test set", False, "the session was opened on another dataset")
    if not receipt.dataset.get("commitment"):
        return Check("test set", True, "without a commitment, because an earlier version prepared it; the hash of its "
                     f"sealed file is in entry {recorded[0].seq}")  # fmt: skip
    return Check("test set", True, f"committed to in entry {recorded[0].seq}, {recorded[0].at}")


def _choice(receipt: Receipt, own: Sequence[Entry]) -> Check:
    frozen = [entry for entry in own if entry.kind == "frozen"]
    if not frozen or frozen[-1].body != receipt.choice:
        return Check("choice", False, "the receipt's choice is not the one that the audit log has frozen")
    trial = receipt.choice.get("selected")
    verdicts = [entry for entry in own if entry.kind == "verdict" and entry.body.get("trial") == trial]
    adopted = any(entry.kind == "adopted" and trial in entry.body.get("trials", {}) for entry in own)
    if not adopted and (not verdicts or verdicts[-1].body.get("status") != "finished"):
        return Check("choice", False, f"trial {trial} was chosen, but the audit log has no result of it")
    return Check("choice", True, f"trial {trial}, frozen in entry {frozen[-1].seq}, {frozen[-1].at}")


def _order(receipt: Receipt, own: Sequence[Entry]) -> Check:
    problem = next(_disorder(receipt, own), "")
    return Check("order", not problem, problem or "test set, choice and look, and no trial after the choice")


def _disorder(receipt: Receipt, own: Sequence[Entry]) -> Iterator[str]:
    places: dict[str, int] = {entry.kind: entry.seq for entry in own}
    wanted: Sequence[str] = {"frozen": ORDER[:2], "revealed": ORDER, "void": ORDER[:2]}[receipt.stage]
    if "adopted" in places:
        places.setdefault("opened", places["adopted"])
    if receipt.stage == "revealed" and not all(entry.body.get("is_here", True) for entry in own):
        wanted = ("opened", "frozen", "revealed")  # examined on the machine of the key's holder
    missing = [kind for kind in wanted if kind not in places]
    if missing:
        yield f"the audit log has no entry {missing[0]!r} of the session"
        return
    if [places[kind] for kind in wanted] != sorted(places[kind] for kind in wanted):
        yield "the entries of the session are in another order than opened, frozen, look, revealed"
    if receipt.stage != "void" and "void" in places:
        yield "the session is void"
    if receipt.stage == "frozen" and {"revealed", "look"} & set(places):
        yield "the session has looked at the test set, but the receipt does not say so"
    late = [e.seq for e in own if e.seq > places["frozen"] and e.kind in ("admitted", "verdict", "extended")]
    if late:
        yield f"the session went on after its choice (entry {late[0]})"


def _opening(receipt: Receipt) -> Check:
    commitment = receipt.dataset.get("commitment")
    opening = receipt.result.opening if receipt.result else None
    if not commitment and opening is None:
        return Check("opening", True, "none: the dataset was prepared without a commitment")
    try:
        made = commitment_of(bytes.fromhex(opening.nonce), opening.targets_digest) if opening else ""
    except ValueError:
        made = ""
    fits = hmac.compare_digest(made, str(commitment))
    return Check("opening", fits, "the commitment to the test targets is opened by nonce and digest" if fits else
                 "nonce and digest do not open the commitment to the test targets")  # fmt: skip


def _result(receipt: Receipt, own: Sequence[Entry]) -> Check:
    revealed = [entry for entry in own if entry.kind == "revealed"]
    result = receipt.result
    if result is None or not revealed or revealed[-1].body.get("result") != digest_of(result.model_dump()):
        return Check("result", False, "the result is not the one that the audit log has recorded")
    if (result.session, result.trial) != (receipt.session, receipt.choice.get("selected")):
        return Check("result", False, "the result is not that of the chosen trial")
    compared = result.default
    if compared and compared.trial != receipt.choice.get("beside", {}).get("trial"):
        return Check("result", False, "the default of the result is not the one that was fixed with the choice")
    return Check("result", True, f"test NDCG@10 {result.metrics['ndcg@10']:.4f} of trial {result.trial}, "
                 f"look {result.look} at this content" + _beside(result))  # fmt: skip


def _beside(result: TestResult) -> str:
    found = result.default
    return f"; {found.metrics['ndcg@10']:.4f} of the default, {found.trial}, in the same look" if found else ""
