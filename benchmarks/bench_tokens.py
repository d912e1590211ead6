"""How many bytes and tokens does a language model read in a session of twenty trials?

    python benchmarks/bench_tokens.py [--before OTHER/.venv/bin/virtualmle] [--save]

--before: the command of another version, measured in the same run.

A scripted session on the demo, over a real server and stdio: the default, then one change per trial, a reflection on
each, the state after every second trial, one sweep, the views that a model asks for, and the end. Every trial is
answered twice: with the running trial at once, and with the result after one wait. Trials are tiny; what is counted is
text. Counted are the instructions and the list of tools, once, and of every answer the text and the structure, of which
a client shows its model one. What a chat client sends again with every request is not counted.

Tokens are those of tiktoken's o200k_base. tiktoken downloads it once, or reads it from the folder that
TIKTOKEN_CACHE_DIR names. Without it they are estimated (`agents/llm/tokens.py`), and the table says so.
"""

import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import CallToolResult, Implementation, TextContent
from record import RESULTS, environment, parser_of, save

from virtualmle.agents.llm.tokens import estimate_tokens

ENCODING = "o200k_base"
TARGET = 40_000  # tokens of the texts, the tools and the instructions
RESULT = "tokens"
TINY: dict[str, Any] = {"epochs": 1, "hidden_dim": 16, "num_negatives": 64}
STEPS: list[dict[str, Any]] = [
    {"lr": 0.001}, {"dropout": 0.4}, {"loss": "full_softmax"}, {"temperature": 0.1}, {"scores": "cosine"},
    {"embedding_dropout": 0.2}, {"tie_embeddings": True}, {"hidden_dim": 32}, {"num_blocks": 2}, {"max_len": 20},
    {"batch_size": 128}, {"lr": 0.003}, {"weight_decay": 0.01}, {"position": "relative"}, {"label_smoothing": 0.1},
    {"norm": "rms"}, {"epochs": 2}, {"ema_decay": 0.99},
]  # fmt: skip
SWEEP = [{"transition_weight": weight, "cooccurrence_weight": other} for weight in (2, 4, 8) for other in (0, 2, 4)]
HYPOTHESIS = {"dimension": "optimisation", "direction": "better", "size": 0.002, "reason": "the loss still falls"}
LESSON = "The change moved validation NDCG@10 as the receipt says, which fits what this knob does on short histories."
SUMMARY = "On this small log the loss and the score priors mattered most; width and regularisation changed little."


class Reader:
    """Calls tools and counts what their answers say, by tool and view."""

    def __init__(self, client: Client, tokens: Callable[[str], int]) -> None:
        self._client = client
        self._tokens = tokens
        self.rows: dict[str, Counter[str]] = {}

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structure of the answer. RuntimeError if the tool refuses the call."""
        result = await self._client.call_tool(tool, arguments, read_timeout_seconds=600)
        text = text_of(result)
        if result.is_error:
            raise RuntimeError(f"{tool}: {text}")
        structure = result.structured_content or {}
        running = " (running)" if structure.get("status") == "running" else ""
        self.add(f"{tool} {arguments['view']}" if tool == "read_memory" else tool + running, text, structure)
        return structure

    def add(self, row: str, text: str, structure: dict[str, Any] | None = None) -> None:
        """Count one answer."""
        shape = json.dumps(structure, separators=(",", ":"), ensure_ascii=False) if structure else ""
        counts = self.rows.setdefault(row, Counter())
        counts.update(
            answers=1, bytes=len(text.encode()), tokens=self._tokens(text),
            structure_bytes=len(shape.encode()), structure_tokens=self._tokens(shape),
        )  # fmt: skip
        counts["longest"] = max(counts["longest"], len(text.encode()))


def text_of(result: CallToolResult) -> str:
    """The text of an answer."""
    return "".join(part.text for part in result.content if isinstance(part, TextContent))


async def play(reader: Reader) -> None:
    """The scripted session: 20 trials, of which one is a sweep."""
    session = (await reader.call("open_session", dataset="demo", backbone="sasrec"))["session"]
    await reader.call("read_memory", session=session, view="protocol")
    for number, step in enumerate([{}, *STEPS]):
        changes = {**TINY, **step} if number == 0 else step
        await _trial(reader, "run_trial", session, changes=changes, hypothesis=HYPOTHESIS)
        if number % 2:
            await reader.call("read_memory", session=session, view="state")
    await _trial(reader, "sweep", session, settings=SWEEP)
    await reader.call("read_memory", session=session, view="trajectory")
    await reader.call("read_memory", session=session, view="trial", trial="t004")
    await reader.call("read_memory", session=session, view="long_term")
    await reader.call("finalize", session=session, cognition_summary=SUMMARY, confirm=True)


async def _trial(reader: Reader, tool: str, session: str, **arguments: Any) -> None:
    started = await reader.call(tool, session=session, wait_seconds=0, **arguments)
    if started["status"] == "running":
        started = await reader.call("wait_trial", session=session, trial=started["trial"])
    if f"write_reflection for {started['trial']}" in started["next"]:
        await reader.call(
            "write_reflection", session=session, trial=started["trial"], helped="unclear", dimension="optimisation",
            lesson=LESSON, evidence=[started["trial"]],
        )  # fmt: skip


async def measure(command: str, home: Path, tokens: Callable[[str], int]) -> dict[str, Counter[str]]:
    """The counts of a session with the server of `command`."""
    environment = {**os.environ, "VIRTUALMLE_WAIT_SECONDS": "inf"}
    server = StdioServerParameters(command=command, args=["serve", "--home", str(home)], env=environment)
    async with Client(stdio_client(server), client_info=Implementation(name="bench-tokens", version="1")) as client:
        reader = Reader(client, tokens)
        reader.add("instructions", client.instructions or "")
        tools = (await client.list_tools()).model_dump(mode="json", by_alias=True, exclude_none=True)["tools"]
        reader.add("tools/list", json.dumps(tools, separators=(",", ":"), ensure_ascii=False))
        await play(reader)
    return reader.rows


def tokenizer() -> tuple[Callable[[str], int], str]:
    """A function that counts tokens, and its name."""
    try:
        import tiktoken  # noqa: PLC0415 - a dev dependency

        encoding = tiktoken.get_encoding(ENCODING)
    except (ImportError, OSError) as error:  # requests' errors are OSErrors: no network
        return estimate_tokens, f"estimated, {type(error).__name__}"
    return (lambda text: len(encoding.encode(text, disallowed_special=()))), ENCODING


def table(rows: dict[str, Counter[str]]) -> str:
    """The counts as Markdown."""
    lines = [
        "| what | answers | text, bytes | longest | text, tokens | structure, bytes | structure, tokens |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    whole: Counter[str] = Counter()
    for name, counts in rows.items():
        whole.update({key: counts[key] for key in counts if key != "longest"})
        lines.append(_line(name, counts, f"{counts['longest']:,}"))
    return "\n".join([*lines, _line("**in all**", whole, "")])


def _line(name: str, counts: Counter[str], longest: str) -> str:
    first = f"| {name} | {counts['answers']} | {counts['bytes']:,} | {longest} | {counts['tokens']:,} "
    return f"{first}| {counts['structure_bytes']:,} | {counts['structure_tokens']:,} |"


def main() -> None:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--before", help="the command of another version, measured first")
    parser.add_argument("--save", action="store_true", help=f"keep the tables in results/{RESULT}.md")
    options = parser.parse_args()
    tokens, name = tokenizer()
    commands = {"before": options.before, "now": str(Path(sys.executable).with_name("virtualmle"))}
    wholes, pages = {}, [f"Tokens: {name}."]
    for label, command in commands.items():
        if command is None:
            continue
        with tempfile.TemporaryDirectory() as home:
            rows = asyncio.run(measure(command, Path(home), tokens))
        wholes[label] = sum(counts["tokens"] for counts in rows.values())
        pages.append(f"## {label.capitalize()}: {wholes[label]:,} tokens of text\n\n{table(rows)}")
    pages.append(f"The target is {TARGET:,} tokens.")
    text = "\n\n".join(pages)
    print(text)
    record = {"benchmark": "tokens", "tokenizer": name, **wholes, **environment()}
    if options.save:
        save(RESULTS / RESULT, record, text)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
