"""The meta-prompt of OPRO and the parsing of its solutions, after Yang et al. (2024), in our own words.

Section 2.2: the meta-prompt holds the description of the problem and the trajectory of past solutions with their
scores. Sections 3.1 and 4.2, Appendix C: the best twenty pairs, in ascending order of their scores, so that the best
one stands last, close to the instruction; the instruction asks for a new solution that differs from all of them and
scores higher, in square brackets.
"""

import json
import re
from collections.abc import Sequence

from ..models.knobs.declaration import Value
from ..sandbox.action_space import Knob
from ..tools.views import KnobValues
from .observed import value_text
from .prompt import knob_lines

MAX_PAIRS = 20

_PROBLEM = """\
A recommender model of the kind {backbone} is trained with a configuration, and the configuration gets a score, its \
NDCG@10 on validation data. A configuration is a list of settings name=value between square brackets; every knob that \
it does not name keeps its default, and [] is the default of all knobs.

{knobs}"""

_TRAJECTORY = """\
Here are configurations with their scores. They are sorted by score in ascending order; a higher score is better.

{pairs}"""

_INSTRUCTION = """\
Give me a new configuration that is different from all configurations above and has a score higher than all of them. \
Do not write code. End your answer with the configuration in square brackets."""

Pair = tuple[KnobValues, float]
"""A configuration, as its settings over the default, and its score."""


def meta_prompt(backbone: str, knobs: Sequence[Knob], pairs: Sequence[Pair]) -> str:
    """Description of the problem, the best pairs in ascending order, and the instruction."""
    best = sorted(pairs, key=lambda pair: pair[1])[-MAX_PAIRS:]
    listed = "\n\n".join(f"configuration:\n{solution_text(settings)}\nscore:\n{score:.4f}" for settings, score in best)
    problem = _PROBLEM.format(backbone=backbone, knobs=knob_lines(knobs, backbone))
    return "\n\n".join([problem, _TRAJECTORY.format(pairs=listed), _INSTRUCTION])


def solution_text(settings: KnobValues) -> str:
    """`[lr=0.001, loss=bce]`."""
    return f"[{', '.join(f'{name}={value_text(value)}' for name, value in settings.items())}]"


def parse_solution(text: str) -> KnobValues | None:
    """The settings between the last square brackets of a reply; None if there are none, or if they cannot be read."""
    found = re.findall(r"\[([^\[\]]*)\]", text)
    if not found:
        return None
    parts = [part.strip() for part in found[-1].split(",") if part.strip()]
    pairs = [part.partition("=") for part in parts]
    if not all(sign and name.strip() for name, sign, _ in pairs):
        return None
    return {name.strip(): _value(value.strip().strip("\"'")) for name, _, value in pairs}


def _value(text: str) -> Value:
    """A number or a boolean if the text is one, otherwise the text."""
    try:
        value = json.loads(text.lower())
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, bool | int | float) else text
