"""The MCP App of read_memory: a page that hosts with the extension show beside its result, in a frame of their own.

The page is one file without any other: it gets the result from its host, as the extension defines, and asks the host
for the trajectory if the agent has read another view. Hosts without the extension show the text of the result, and can
show the pictures that are resources. See https://modelcontextprotocol.io/extensions/apps for the protocol.
"""

from importlib.resources import files
from typing import Any

from mcp.server.apps import Apps

URI = "ui://virtualmle/trajectory.html"
SHOWN_BY = "read_memory"
META: dict[str, Any] = {"ui": {"resourceUri": URI}}
"""The `_meta` of the tool whose results the page shows."""


def trajectory_app() -> Apps:
    """The extension with its page. It may load nothing and needs no permission, which is the default."""
    apps = Apps()
    html = files(__package__).joinpath("trajectory_view.html").read_text(encoding="utf-8")
    apps.add_html_resource(
        URI,
        html,
        name="Trajectory view",
        title="Trajectory view",
        description="Page for hosts that show MCP Apps: the trials of a session and the best so far.",
        prefers_border=True,
    )
    return apps
