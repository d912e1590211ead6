"""Language models that answer by rules, for tests: what a simple, sensible model would reply to our prompts.

`engineer_answer` and `opro_answer` are functions of the prompt alone, so that any process gives the same reply. They
serve the scripted endpoint over HTTP, and `RuleModel` in the process of the test.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.scripted_endpoint import Answer, Call, count_tokens
from virtualmle.agents.base import Agent
from virtualmle.agents.llm.messages import LanguageModel, Reply, Request, ToolCall, Usage
from virtualmle.agents.observed import settings_text
from virtualmle.agents.registry import ASKING, AgentOptions, make_agent

_KNOB = re.compile(r"^(\w+): (\S+?)(?: int)?(?: log)? = (\S+)$", re.MULTILINE)


def knobs_of(prompt: str) -> dict[str, list[Any]]:
    """The values that a prompt offers for each knob beside its default; of a range, both ends and some between."""
    knobs = {name: (_values(values, default), _value(default)) for name, values, default in _KNOB.findall(prompt)}
    return {name: [value for value in values if value != default] for name, (values, default) in knobs.items()}


def _values(text: str, default: str) -> list[Any]:
    if "|" in text:
        return [_value(part) for part in text.split("|")]
    low, high = (float(part) for part in text.split(".."))
    whole = not re.search(r"[.e]", text.replace("..", "") + default)
    middle = [low, (low + high) / 2, (low + high) / 3, high, (low * high) ** 0.5 if low > 0 else high / 4]
    return [int(value) if whole else round(value, 6) for value in middle]


def _value(text: str) -> Any:
    return {"true": True, "false": False}.get(text, float(text) if re.fullmatch(r"[\d.e-]+", text) else text)


def pending(prompt: str) -> str | None:
    """The trial that the last line of a prompt asks to reflect on."""
    found = re.search(r"Reflect on (t\d+)", prompt.rpartition("\n")[2])
    return found[1] if found else None


def engineer_calls(prompt: str) -> list[Call]:
    """The reflection that is asked for, and one knob changed at random; finalize if nothing is left to do."""
    calls = []
    if pending(prompt):
        reflection = {"helped": "unclear", "dimension": "optimisation", "lesson": f"{pending(prompt)} was measured."}
        calls.append(Call("write_reflection", reflection))
    section = _refused_section(prompt)
    refused = section.count("\n- ") + sum(map(int, re.findall(r"… (\d+) more", section)))
    if not knobs_of(prompt) and '"finalize"' not in prompt:
        return [*calls, Call("run_trial", {"changes": {}})]
    if "Call finalize" in prompt[-700:] or refused >= 9 or not knobs_of(prompt):
        summary = {"cognition_summary": "Knobs were changed one at a time; see the effects. NDCG@10 rose from 0.02."}
        return [*calls, Call("finalize", summary)]
    return [*calls, Call("run_trial", {"changes": _change(prompt)})]


def _change(prompt: str) -> dict[str, Any]:
    """One knob at random, with a value that the server has not refused since the last trial."""
    refused = set(re.findall(r"^- (\w+=\S+):", _refused_section(prompt), re.MULTILINE))
    changes = [{name: value} for name, values in sorted(knobs_of(prompt).items()) for value in values]
    fresh = [change for change in changes if settings_text(change) not in refused]
    return random.Random(prompt).choice(fresh or changes)


def _refused_section(prompt: str) -> str:
    return prompt.partition("## Refused")[2].partition("## ")[0]


def engineer_answer(prompt: str, _: object = 0) -> Answer:
    """The reply of `engineer_calls`, by the prompt alone."""
    return Answer("I change one knob.", engineer_calls(prompt))


def opro_answer(prompt: str, seed: object = 0) -> Answer:
    """A configuration in square brackets with two knobs at random."""
    generator = random.Random(f"{seed} {prompt}")
    knobs = knobs_of(prompt)
    chosen = generator.sample(sorted(knobs), min(2, len(knobs)))
    settings = ", ".join(f"{name}={json.dumps(generator.choice(knobs[name]))}" for name in chosen)
    return Answer(f"The scores grow with these. [{settings}]")


class RuleModel(LanguageModel):
    """Answers in this process by a function of the prompt and the step, and keeps its replies as the ledger does.

    `asked` has the requests, `tokens` counts their prompts.
    """

    def __init__(self, answer: Callable[[str, str], Answer]) -> None:
        self._answer = answer
        self.asked: list[Request] = []
        self.tokens = 0
        self.stored: dict[tuple[str, str], Reply] = {}

    async def complete(self, request: Request) -> Reply:
        """The answer as a reply."""
        prompt = prompt_of(request)
        self.asked.append(request)
        self.tokens += count_tokens(prompt)
        answer = self._answer(prompt, request.step)
        calls = tuple(_tool_call(f"c{len(self.asked)}_{i}", call) for i, call in enumerate(answer.calls))
        stop: Any = answer.stopped
        reply = Reply(answer.text, calls, Usage(count_tokens(prompt), output=answer.output), stop, "rules")
        self.stored[request.session, request.step] = reply
        return reply

    def recall(self, session: str, step: str) -> Reply | None:
        """The reply to an earlier call for this step."""
        return self.stored.get((session, step))


def prompt_of(request: Request) -> str:
    """The text of a request that counts as input."""
    return "\n".join([*(json.dumps(_spec(tool)) for tool in request.tools), *(m.text for m in request.messages)])


def asking_agent(name: str, seed: int = 0, **options: Any) -> Agent:
    """An agent of the registry; one that asks a language model gets a `RuleModel`."""
    answer = opro_answer if name == "opro" else engineer_answer
    model = RuleModel(answer) if name in ASKING else None
    return make_agent(name, options=AgentOptions(seed, model=model, **options))


def _spec(tool: Any) -> Mapping[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def _tool_call(name: str, call: Call) -> ToolCall:
    try:
        arguments = json.loads(call.raw)
    except json.JSONDecodeError:
        arguments = None
    return ToolCall(name, call.name, arguments if isinstance(arguments, dict) else None, call.raw)
