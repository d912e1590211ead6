"""The MCP App of read_memory: how it is offered, and what a browser makes of it with a hostile session."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID
from mcp.types import TextResourceContents

from tests.app_host import BROWSER, host_page, report_of
from tests.mcp_worlds import ERAS, connect
from tests.report_world import EVIL, STORY, Story, finished
from virtualmle.server.trajectory_view import SHOWN_BY, URI

pytestmark = pytest.mark.anyio
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
VOID = {"meta", "link", "br", "img", "input"}


class Elements(HTMLParser):
    """The elements of a page; `open` is empty at its end if all of them were closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def page_of(home: Path, mode: str = "auto") -> str:
    async with connect(home, mode) as client:
        (content,) = (await client.read_resource(URI)).contents
    assert isinstance(content, TextResourceContents) and content.mime_type == APP_MIME_TYPE
    return content.text


@pytest.mark.parametrize("era", ERAS)
async def test_the_tool_points_to_a_listed_resource_of_the_right_type(tmp_path: Path, era: str) -> None:
    async with connect(tmp_path, era) as client:
        tools = {tool.name: tool.meta or {} for tool in (await client.list_tools()).tools}
        assert tools[SHOWN_BY]["ui"] == {"resourceUri": URI}
        assert not any("ui" in meta for name, meta in tools.items() if name != SHOWN_BY)
        listed = {str(r.uri): r for r in (await client.list_resources()).resources}
        assert listed[URI].mime_type == APP_MIME_TYPE and listed[URI].title
        if era == "auto":  # the handshake's versions have no field for it
            assert EXTENSION_ID in (client.server_capabilities.extensions or {})
    assert await page_of(tmp_path, era)


async def test_the_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    html = await page_of(tmp_path)
    elements = Elements()
    elements.feed(html)
    elements.close()
    assert elements.open == [] and len(html) < 16_000
    attributes = [attributes for _, attributes in elements.seen]
    assert not any({"src", "href", "srcset", "action"} & set(given) for given in attributes)
    assert not any(name.startswith("on") for given in attributes for name in given)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|eval|Function|innerHTML|outerHTML|insertAdjacent\w*|"
                         r"document\.write|import)\b *\(?", html.replace("textContent", ""))  # fmt: skip
    addresses = set(re.findall(r"https?://[^\s\"']+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG's elements


async def results_of(tmp_path: Path) -> dict[str, Any]:
    """What a client reads of a session whose agent wrote markup: two views, and a refusal."""
    story = Story(tmp_path)
    for changes, ndcg, delta, se, verdict in STORY:
        story.reflect(story.run(changes, finished(ndcg, delta, se, verdict)), EVIL + "<script>hit = true</script>")
    async with connect(tmp_path) as client:
        asked = {"trajectory": {"view": "trajectory"}, "state": {"view": "state"}, "refused": {"view": "trial"}}
        return {
            name: (await client.call_tool(SHOWN_BY, {"session": story.session, **arguments})).model_dump(
                mode="json", by_alias=True, exclude_none=True
            )
            for name, arguments in asked.items()
        }


@needs_browser
async def test_a_browser_shows_the_trajectory_and_an_agents_markup_as_text(tmp_path: Path) -> None:
    html, results = await page_of(tmp_path / "home"), await results_of(tmp_path)
    page = tmp_path / "page.html"

    page.write_text(host_page(html, results["trajectory"]), encoding="utf-8")
    found = report_of(page)
    assert (found["rows"], found["marks"], found["scripts"], found["theme"]) == (8, 7, 0, "light")
    assert not found["hit"] and not found["overflows"]
    assert "<script>alert" in found["hidden"] and "t006" in found["text"] and "0.0680" in found["text"]
    assert found["methods"][0] == "ui/initialize" and "ui/notifications/initialized" in found["methods"]
    assert "tools/call" not in found["methods"]

    page.write_text(host_page(html, results["state"], results["trajectory"], theme="dark"), encoding="utf-8")
    found = report_of(page)  # the host lets the page ask for the trajectory
    assert (found["rows"], found["marks"], found["theme"]) == (8, 7, "dark") and "tools/call" in found["methods"]

    page.write_text(host_page(html, results["state"]), encoding="utf-8")
    found = report_of(page)  # it does not: the best trials of the state
    assert (found["rows"], found["marks"]) == (6, 0) and "tools/call" not in found["methods"]

    page.write_text(host_page(html, results["refused"]), encoding="utf-8")
    assert "view='trial' needs the argument trial" in report_of(page)["text"]
