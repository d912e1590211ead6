"""The resources of a session: pages, pictures, lists in pages, and what must not be in them."""

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client, MCPError
from mcp.types import BlobResourceContents, TextResourceContents

from tests.mcp_worlds import ERAS, connect
from tests.quick_home import environment
from tests.recorded_home import build, open_home, open_session
from tests.report_world import CRASHED, EVIL, STORY, Story, finished
from virtualmle.server.pages import escaped
from virtualmle.server.resources import SESSION_RESOURCES, SESSIONS_PER_PAGE

pytestmark = pytest.mark.anyio
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A home with a session of seven finished trials with hostile reflections, and a crash."""
    made = Story(tmp_path)
    for changes, ndcg, delta, se, verdict in STORY:
        made.reflect(made.run(changes, finished(ndcg, delta, se, verdict)), EVIL)
    made.run({"lr": 0.003}, CRASHED)
    return made


async def read(client: Client, uri: str) -> tuple[str, str | bytes]:
    """The media type and the content of a resource."""
    (content,) = (await client.read_resource(uri)).contents
    if isinstance(content, BlobResourceContents):
        return content.mime_type or "", base64.b64decode(content.blob)
    assert isinstance(content, TextResourceContents)
    return content.mime_type or "", content.text


async def text_at(client: Client, uri: str) -> str:
    media, text = await read(client, uri)
    assert media == "text/markdown" and isinstance(text, str)
    return text


async def test_the_trajectory_is_a_page_beside_its_json(story: Story, era: str) -> None:
    async with connect(story.home, era) as client:
        page = await text_at(client, f"session://{story.session}/trajectory.md")
        assert (await read(client, f"session://{story.session}/trajectory"))[0] == "application/json"
    lines = page.splitlines()
    assert lines[0] == f"# Trajectory of {story.session}"
    assert "| t002 | t001 | `lr=0.001` | 0.0593 ± 0.0026 | +0.0042 ± 0.0012 | keep |" in lines
    assert "| t008 | t006 | `lr=0.003` | – | – | crash |" in lines
    assert len([line for line in lines if line.startswith("| t0")]) == 8
    assert "- t003: helped no, scoring (supported)" in page


async def test_a_trial_is_a_page_with_its_learning_curve(story: Story, era: str) -> None:
    async with connect(story.home, era) as client:
        page = await text_at(client, f"session://{story.session}/trials/t005.md")
        with pytest.raises(MCPError, match="unknown trial 't099'"):
            await client.read_resource(f"session://{story.session}/trials/t099.md")
    for line in ("# Trial t005", "- changes: `transition_weight=4.0`", "- verdict: keep", "| 2 | 5.0000 | 0.0602 |"):
        assert line in page


async def test_what_an_agent_wrote_is_no_markup_in_a_page(story: Story) -> None:
    async with connect(story.home) as client:
        pages = [await text_at(client, f"session://{story.session}/{name}") for name in
                 ("trajectory.md", "trials/t002.md", "trials/t008.md")]  # fmt: skip
    for page in pages:
        assert "alert" in page and "<" not in page and "\\[red\\]" in page
    assert escaped("| a | `b`\n# c [d](e) &amp; <i>") == "\\| a \\| \\`b\\` \\# c \\[d\\](e) &amp;amp; &lt;i&gt;"


async def test_the_pictures_are_png_and_change_with_the_session(tmp_path: Path, era: str) -> None:
    story, names = Story(tmp_path), ("best-so-far", "learning-curves")
    async with connect(tmp_path, era) as client:
        seen = []
        for step in (None, *STORY[:2]):
            if step:
                changes, ndcg, delta, se, verdict = step
                story.run(changes, finished(ndcg, delta, se, verdict))
            found = [await read(client, f"session://{story.session}/{name}.png") for name in names]
            assert all(media == "image/png" and isinstance(p, bytes) and p.startswith(PNG) for media, p in found)
            assert all(len(picture) < 60_000 for _, picture in found)
            seen += [picture for _, picture in found]
    assert len(set(seen)) == 5  # both say in the same words that there is no trial yet


async def test_a_picture_of_crashes_only_says_that_nothing_has_finished(tmp_path: Path) -> None:
    story = Story(tmp_path)
    async with connect(tmp_path) as client:
        empty = await read(client, f"session://{story.session}/best-so-far.png")
        story.run({}, CRASHED)
        assert await read(client, f"session://{story.session}/best-so-far.png") == empty
        assert (await read(client, f"session://{story.session}/learning-curves.png"))[1] == empty[1]


async def test_sessions_are_listed_newest_first_and_in_pages(story: Story, era: str) -> None:
    record = story.memory.sessions.get(story.session).model_copy(update={"id": ""})
    names = [story.session, *(story.memory.sessions.open(record).id for _ in range(2 * SESSIONS_PER_PAGE + 3))]
    uris: list[str] = []
    async with connect(story.home, era) as client:
        cursor, pages = None, 0
        while pages == 0 or cursor:
            page = await client.list_resources(cursor=cursor)
            uris += [str(resource.uri) for resource in page.resources]
            cursor, pages = page.next_cursor, pages + 1
            if pages == 1:  # a session that opens meanwhile moves no other to another page
                story.memory.sessions.open(record)
        assert await read(client, uris[-1])  # every one that is listed can be read
    wanted = [each.uri.format(session=name) for name in reversed(names) for each in SESSION_RESOURCES]
    assert [uri for uri in uris if uri.startswith("session://")] == wanted
    assert pages == 3 and "sandbox://protocol" in uris and len(set(uris)) == len(uris)


async def test_every_listed_resource_has_a_title_a_description_and_the_type_that_it_is_read_with(story: Story) -> None:
    async with connect(story.home) as client:
        listed = (await client.list_resources()).resources
        for resource in listed:
            assert resource.title and resource.description
            assert (await read(client, str(resource.uri)))[0] == resource.mime_type
        templates = (await client.list_resource_templates()).resource_templates
        assert [t.uri_template for t in templates[:-1]] == [each.uri for each in SESSION_RESOURCES]
        assert all(template.title and template.description and template.mime_type for template in templates)


async def test_no_resource_shows_a_test_figure(tmp_path: Path) -> None:
    recorded = build(tmp_path)  # revealed: test NDCG@10 .0321
    ws = open_home(recorded.home)
    with ws.memory:
        open_session(ws)  # on the same data: its agent must not see the figure
    async with connect(recorded.home) as client:
        listed = [str(r.uri) for r in (await client.list_resources()).resources if str(r.uri).startswith("session")]
        texts = [str(text) for uri in [*listed, f"session://{recorded.session}/trials/t002.md"]
                 if isinstance(text := (await read(client, uri))[1], str)]  # fmt: skip
    assert len(texts) == 5 and any("0.05" in text for text in texts)
    assert not any(figure in text for text in texts for figure in ("0.0321", "0.07"))


def test_a_server_that_starts_imports_no_matplotlib() -> None:
    check = "import sys, virtualmle.server.serve; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", check], env=environment(), check=False).returncode == 0
