"""How soon `virtualmle serve` answers a client, beside other MCP servers in Python.

Each server is started N times in turn, over stdio, and asked to `initialize` and for `tools/list`. Wall-clock seconds
count only on a quiet machine, and processor seconds grow under load as well, by a half or so. The first start of each
server is not counted: it fills the disk cache and compiles bytecode.

    python -m venv startup-venv && startup-venv/bin/pip install mcp-server-fetch mcp-server-git
    python benchmarks/bench_startup.py --peers startup-venv [--starts 9] [--save]
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from record import RESULTS, environment, parser_of, save

PEERS = ("mcp-server-fetch", "mcp-server-git")
INITIALIZE = {
    "protocolVersion": "2025-06-18",
    "capabilities": {},
    "clientInfo": {"name": "bench-startup", "version": "1"},
}
COLUMNS = ("initialize: wall", "processor", "tools/list: wall", "processor")


def ask(server: subprocess.Popen[bytes], number: int, method: str, parameters: dict[str, Any]) -> None:
    """Send a request and wait for its answer; other messages are skipped."""
    assert server.stdin is not None and server.stdout is not None
    request = {"jsonrpc": "2.0", "id": number, "method": method, "params": parameters}
    server.stdin.write(json.dumps(request).encode() + b"\n")
    server.stdin.flush()
    for line in server.stdout:
        message = json.loads(line)
        if message.get("id") == number:
            if "result" not in message:
                raise SystemExit(f"{server.args}: {method} failed: {message}")
            return
    raise SystemExit(f"{server.args} ended before it answered {method}")


def one_start(command: list[str]) -> tuple[float, ...]:
    """Wall-clock and processor seconds from the start to the answers of initialize and of tools/list."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = time.perf_counter()
    server = subprocess.Popen(
        command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    process = psutil.Process(server.pid)
    times: list[float] = []

    def record() -> None:
        used = process.cpu_times()
        times.extend((time.perf_counter() - started, used.user + used.system))

    with server:
        ask(server, 1, "initialize", INITIALIZE)
        record()
        assert server.stdin is not None
        server.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        ask(server, 2, "tools/list", {})
        record()
        server.stdin.close()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
    return tuple(times)


def commands(peers: Path | None, home: Path) -> dict[str, list[str]]:
    """Our server over an empty home and each peer that is installed."""
    ours = shutil.which("virtualmle", path=str(Path(sys.executable).parent))
    program = [ours] if ours else [sys.executable, "-P", "-m", "virtualmle"]
    found = {"virtualmle": [*program, "serve", "--home", str(home)]}
    for name in PEERS if peers else ():
        peer = peers / "bin" / name
        if not peer.exists():
            raise SystemExit(f"{peer} is missing; install it: {peers / 'bin' / 'pip'} install {name}")
        found[name] = [str(peer)]
    return found


def text_of(record: dict[str, Any]) -> str:
    about = record["environment"]
    counted = f"seconds from the start, median and range of {record['starts']} starts"
    rows = []
    for row in record["rows"]:
        cells = [f"{median:.2f} ({least:.2f} to {most:.2f})" for median, least, most in row["seconds"]]
        rows.append(f"| {row['server']} | {' | '.join(cells)} |")
    return "\n".join([
        f"{about['hardware']}, {about['cores']} cores, load {about['load']:.1f}, Python {about['python']}, "
        f"{about['date']}, commit {about['commit']}; {counted}",
        "",
        f"| server | {' | '.join(COLUMNS)} |",
        "|---|--:|--:|--:|--:|",
        *rows,
        "",
    ])  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--peers", type=Path, help="virtual environment with mcp-server-fetch and mcp-server-git")
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="write results/startup.*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        known = commands(arguments.peers, Path(home))
        starts: dict[str, list[tuple[float, ...]]] = {name: [] for name in known}
        about = environment()  # before the load of our own starts
        for number in range(arguments.starts + 1):
            for name, command in known.items():
                times = one_start(command)
                starts[name] += [times] if number else []
    rows = [
        {"server": name, "seconds": [(statistics.median(of), min(of), max(of)) for of in zip(*times, strict=True)]}
        for name, times in starts.items()
    ]
    record = {"environment": about, "starts": arguments.starts, "rows": rows}
    print(text_of(record))
    print(json.dumps(record))
    if arguments.save:
        save(RESULTS / "startup", record, text_of(record))


if __name__ == "__main__":
    main()
