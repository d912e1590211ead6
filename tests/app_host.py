"""A host of MCP Apps as a page for a headless browser: it frames a view, hands it a tool result, and reports on it."""

import json
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 120.0
CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
"""The strictest policy that the extension's hosts apply to a page that asks for nothing."""

PAGE = """<!doctype html><body style="margin:0"><iframe id="view" style="border:0;width:WIDTHpx;height:600px"></iframe>
<pre id="report"></pre><script>
const GIVEN = GIVEN_JSON, frame = document.getElementById("view"), methods = [];
frame.srcdoc = GIVEN.html;
const say = message => frame.contentWindow.postMessage({ jsonrpc: "2.0", ...message }, "*");
addEventListener("message", ({ data }) => {
  methods.push(data.method || "answer");
  if (data.method === "ui/initialize") say({ id: data.id, result: { protocolVersion: "2026-01-26",
    hostInfo: { name: "test", version: "1" }, hostCapabilities: GIVEN.answer ? { serverTools: {} } : {},
    hostContext: { theme: GIVEN.theme } } });
  if (data.method === "ui/notifications/initialized") {
    say({ method: "ui/notifications/tool-input", params: { arguments: {} } });
    say({ method: "ui/notifications/tool-result", params: GIVEN.result });
    say({ id: "bye", method: "ui/resource-teardown", params: {} });
  }
  if (data.method === "tools/call") say({ id: data.id, result: GIVEN.answer });
  if (data.method === "ui/notifications/size-changed") frame.style.height = data.params.height + "px";
});
setTimeout(() => {
  const view = frame.contentDocument, count = name => view.querySelectorAll(name).length;
  document.getElementById("report").textContent = JSON.stringify({ methods, text: view.body.innerText,
    hidden: view.querySelector("main").textContent,
    scripts: count("main script, main img"), marks: count("main svg circle, main svg rect"), rows: count("main tr"),
    theme: view.documentElement.dataset.theme, hit: frame.contentWindow.hit === true,
    overflows: view.documentElement.scrollWidth > frame.clientWidth });
}, 2000);
</script>"""


def host_page(html: str, result: Any, answer: Any = None, theme: str = "light", width: int = 375) -> str:
    """The page; `answer`: the result of the calls that the view makes, None = the host allows none."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{escape(CSP)}">'
    framed = html.replace("<head>", f"<head>{policy}", 1)
    given = json.dumps({"html": framed, "result": result, "answer": answer, "theme": theme}).replace("<", "\\u003c")
    return PAGE.replace("WIDTH", str(width)).replace("GIVEN_JSON", given)


def report_of(page: Path) -> dict[str, Any]:
    """What the browser has found in the view."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    command += [f"--user-data-dir={page.parent / 'browser'}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    text = done.stdout.split('<pre id="report">', 1)[1].split("</pre>", 1)[0]
    found: dict[str, Any] = json.loads(unescape(text))
    return found
