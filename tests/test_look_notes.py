"""What people and agents are told about earlier looks at nearly the same content."""

from pathlib import Path

import polars as pl

from tests.quick_home import quick_home
from tests.report_world import tell
from virtualmle.cli.advice import look_notice
from virtualmle.data.demo import generate_demo
from virtualmle.data.prepare import prepare
from virtualmle.data.prepared import PrepareOptions
from virtualmle.data.readers import Log
from virtualmle.examiner.ledger import Ledger
from virtualmle.examiner.request import read_revealed
from virtualmle.examiner.vault import Vault
from virtualmle.tools.finalize import final_result
from virtualmle.tools.open_session import open_session
from virtualmle.tools.workspace import Settings, Workspace


def test_the_notice_before_a_run_counts_the_looks_at_near_duplicates(tmp_path: Path) -> None:
    ws = Workspace.open(quick_home(tmp_path / "home"), settings=Settings(threads=1))
    demo = ws.dataset("demo")
    frame = generate_demo().filter(pl.col("user") != "u0003").sample(fraction=1, shuffle=True, seed=1)
    log = Log(frame, {name: name for name in frame.columns}, frame.height)
    vault = ws.vault
    prepare(
        log, "copy", ws.catalogue.root / "copy", PrepareOptions(), vault.public_key(), mac_key=vault.mac_key()
    )  # fmt: skip
    record = ws.memory.sessions.get(open_session(ws, "copy", "sasrec").session)
    assert "(0 looks at this data so far)" in look_notice(record, ws.home)
    Ledger(Vault(ws.home).directory).record("demo-sasrec-1", "demo", demo.dataset_id, "fingerprint")
    assert "(1 look at this data so far)" in look_notice(record, ws.home)
    ws.close()


def test_the_final_result_has_the_note_of_the_look(tmp_path: Path) -> None:
    story, note = tell(tmp_path), "99% the same test targets as shop-a, 2 looks"
    story.end(look_note=note)
    ws = Workspace.open(tmp_path)
    session = ws.memory.sessions.get(story.session)
    result = final_result(ws, session, read_revealed(tmp_path, story.session))
    assert (result.look, result.look_note) == (3, note)
    ws.close()
