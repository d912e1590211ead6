"""How a knob is declared: once, as a field of the group of its dimension.

The field gives the knob's name, type and default; `knob(...)` gives everything else that is known about it. The
configuration model (`models/config.py`), the action space and its rules (`sandbox/`), the tables of SANDBOX.md and
docs/knobs.md all follow from the declaration. Torch-free, so that the sandbox may read it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Backbone = Literal["sasrec", "hstu"]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
Dimension = Literal["optimisation", "regularisation", "capacity", "sequence_modelling", "supervision", "scoring"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
KnobType = Literal["int", "float", "bool", "choice"]
Value = bool | int | float | str


@dataclass(frozen=True)
class Inert:
    """When a knob makes no difference: `holds` is asked about a whole configuration, `reason` completes a refusal."""

    holds: Callable[[Any], bool]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What `knob(...)` says beside type, default and engine bounds.

    text: what the knob does, in one line. low, high: the range that SANDBOX.md offers as shipped, both ends included.
    scale: "log" where a search should step by factors. hstu: the plain default on HSTU where it differs. only: the
    backbone that reads the knob, if only one does. inert: when another knob switches it off. source, helps, cost,
    note: where it comes from, where it is known to help, what it costs, and what else to mind (docs/knobs.md).
    aliases: names under which other libraries and papers know the knob; an error message suggests the knob for them.
    """

    text: str
    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] | None = None
    hstu: Value | None = None
    only: Backbone | None = None
    inert: Inert | None = None
    source: str = ""
    helps: str = ""
    cost: str = ""
    note: str = ""
    aliases: tuple[str, ...] = ()

    def __call__(self, schema: dict[str, Any]) -> None:
        """Pydantic's hook for JSON schemas: the one-line text becomes the field's description."""
        schema["description"] = self.text


def knob(
    default: Value,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    **details: Any,
) -> Any:
    """A field of a `KnobGroup`.

    ge, gt, le, lt are the engine's bounds: no SANDBOX.md may offer a value beyond them. low and high are the range
    that the shipped SANDBOX.md offers; they default to ge and le. details: the other fields of `Declaration`.
    """
    number = isinstance(default, int | float) and not isinstance(default, bool)
    declaration = Declaration(
        text=text,
        low=(ge if low is None else low) if number else None,
        high=(le if high is None else high) if number else None,
        scale=("log" if log else "linear") if number else None,
        **details,
    )
    return Field(default, ge=ge, gt=gt, le=le, lt=lt, json_schema_extra=declaration)


class KnobGroup(BaseModel):
    """The knobs of one dimension. `TrialConfig` is made of all groups."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
    dimension: ClassVar[Dimension]


@dataclass(frozen=True)
class DeclaredKnob:
    """One knob with everything that follows from its declaration."""

    name: str
    type: KnobType
    dimension: Dimension
    choices: tuple[str, ...]  # of a choice knob
    low: int | float | None  # of a number: the range that SANDBOX.md offers as shipped
    high: int | float | None
    defaults: Mapping[Backbone, Value]  # the plain baselines, for the backbones that read the knob
    engine: str  # the engine's own bounds, as text; empty for a knob that is not a number
    about: Declaration

    @property
    def inert(self) -> Inert | None:
        """When the knob makes no difference although its backbone reads it."""
        return self.about.inert


def declared_knobs(groups: Iterable[type[KnobGroup]]) -> dict[str, DeclaredKnob]:
    """All knobs of some groups by name, in the order of their declaration."""
    return {
        name: _declared(name, field, group.dimension) for group in groups for name, field in group.model_fields.items()
    }


def _declared(name: str, field: FieldInfo, dimension: Dimension) -> DeclaredKnob:
    about = cast(Declaration, field.json_schema_extra)
    kind: KnobType = "choice" if isinstance(field.default, str) else cast(KnobType, type(field.default).__name__)
    number = {"int": int, "float": float}.get(kind)
    own = {"sasrec": field.default, "hstu": field.default if about.hstu is None else about.hstu}
    return DeclaredKnob(
        name=name,
        type=kind,
        dimension=dimension,
        choices=get_args(field.annotation) if kind == "choice" else (),
        low=number(about.low) if number and about.low is not None else None,
        high=number(about.high) if number and about.high is not None else None,
        defaults={backbone: own[backbone] for backbone in BACKBONES if about.only in (None, backbone)},
        engine=_engine_bounds(field) if number else "",
        about=about,
    )


def _engine_bounds(field: FieldInfo) -> str:
    """The bounds in interval notation: [8, 1024] or (0, 1]."""
    found = {name: value for item in field.metadata for name, value in _bounds_of(item)}
    left = f"[{found['ge']:g}" if "ge" in found else f"({found['gt']:g}"
    right = f"{found['le']:g}]" if "le" in found else f"{found['lt']:g})"
    return f"{left}, {right}"


def _bounds_of(constraint: object) -> Iterable[tuple[str, Any]]:
    """The name and value of one of pydantic's bounds (annotated_types.Ge and its relatives)."""
    return ((name, getattr(constraint, name)) for name in ("ge", "gt", "le", "lt") if hasattr(constraint, name))
