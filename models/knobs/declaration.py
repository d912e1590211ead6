"""Declaring a knob: each knob is declared once, as a field of the group of its dimension.

The field gives the knob's name, type and default; `knob(...)` gives everything else about it. The configuration model
(`models/config.py`), the action space and its rules (`sandbox/`), and the tables of SANDBOX.md and docs/knobs.md all
follow from the declarations. No module here imports torch, so that the sandbox can use them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from .resolution import Resolution
from .trial_names import NAMING

Backbone = Literal["sasrec", "hstu"]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
Dimension = Literal["optimisation", "regularisation", "capacity", "sequence_modelling", "supervision", "scoring"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
KnobType = Literal["int", "float", "bool", "choice", "trials"]  # trials: the names of trials, as one text
Value = bool | int | float | str
FINEST = "0.000001"  # of numbers on a linear scale with two significant digits, whose ranges include 0


@dataclass(frozen=True)
class Inert:
    """When a knob has no effect: `holds` tests a whole configuration, and `reason` says why in messages and tables."""

    holds: Callable[[Any], bool]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What `knob(...)` records beside the default and the engine's bounds.

    text: what the knob does, in one line. low, high: the range in the shipped SANDBOX.md, both ends included. scale:
    "log" if a search should step by factors. resolution: to what numbers are rounded. hstu: the plain default on HSTU,
    if it differs. only: the backbone that reads the knob, if only one does. inert: when another knob disables this one.
    source, helps, cost, note: the columns of docs/knobs.md: where the knob comes from, where it is known to help, what
    it costs, and what else to mind. aliases: names of the knob in other libraries and papers; error messages suggest
    the knob for them.
    """

    text: str
    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] | None = None
    resolution: Resolution | None = None
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
    step: str | None = None,
    near_one: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    **details: Any,
) -> Any:
    """A field of a `KnobGroup`.

    ge, gt, le, lt are the engine's bounds: no SANDBOX.md may offer a value beyond them. low and high are the range in
    the shipped SANDBOX.md; they default to ge and le. step: values are multiples of it, e.g. "0.01"; without it, a
    linear integer is any integer, and other numbers have two significant digits (of 1 - value if `near_one`).
    details: the other fields of `Declaration`.
    """
    number = isinstance(default, int | float) and not isinstance(default, bool)
    declaration = Declaration(
        text=text,
        low=(ge if low is None else low) if number else None,
        high=(le if high is None else high) if number else None,
        scale=("log" if log else "linear") if number else None,
        resolution=_resolution(type(default), log, step, near_one) if number else None,
        **details,
    )
    return Field(default, ge=ge, gt=gt, le=le, lt=lt, json_schema_extra=declaration)


def _resolution(kind: type, log: bool, step: str | None, near_one: bool) -> Resolution:
    """The resolution that `knob` documents for a number of this type."""
    if kind is int and not log and step is None:
        return Resolution("1")
    finest = FINEST if kind is float and not log else None
    return Resolution(step, powers=kind is int, complement=near_one, finest=finest)


class KnobGroup(BaseModel):
    """The knobs of one dimension. `TrialConfig` inherits from all groups."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)
    dimension: ClassVar[Dimension]


@dataclass(frozen=True)
class DeclaredKnob:
    """One knob with everything that follows from its declaration."""

    name: str
    type: KnobType
    dimension: Dimension
    choices: tuple[str, ...]  # empty unless the type is "choice"
    low: int | float | None  # the range in the shipped SANDBOX.md; None unless the knob is a number
    high: int | float | None
    defaults: Mapping[Backbone, Value]  # the plain default, for each backbone that reads the knob
    engine: str  # the engine's own bounds, as text; empty for choices and booleans
    about: Declaration

    @property
    def inert(self) -> Inert | None:
        """When the knob has no effect although its backbone reads it."""
        return self.about.inert

    @property
    def resolution(self) -> Resolution | None:
        """To what the values of the knob are rounded; None unless it is a number."""
        return self.about.resolution


def declared_knobs(groups: Iterable[type[KnobGroup]]) -> dict[str, DeclaredKnob]:
    """The knobs of these groups by name, in the order of their declaration."""
    return {
        name: _declared(name, field, group.dimension) for group in groups for name, field in group.model_fields.items()
    }


def _declared(name: str, field: FieldInfo, dimension: Dimension) -> DeclaredKnob:
    about = cast(Declaration, field.json_schema_extra)
    kind = _type_of(name, field, about)
    number = {"int": int, "float": float}.get(kind)
    defaults = {"sasrec": field.default, "hstu": field.default if about.hstu is None else about.hstu}
    return DeclaredKnob(
        name=name,
        type=kind,
        dimension=dimension,
        choices=get_args(field.annotation) if kind == "choice" else (),
        low=number(about.low) if number and about.low is not None else None,
        high=number(about.high) if number and about.high is not None else None,
        defaults={backbone: defaults[backbone] for backbone in BACKBONES if about.only in (None, backbone)},
        engine=_engine_bounds(name, field) if number else NAMING[name].count if kind == "trials" else "",
        about=about,
    )


def _type_of(name: str, field: FieldInfo, about: Declaration) -> KnobType:
    """The type of a knob; raises TypeError for a default of another type, such as 0 for a float."""
    choices = get_args(field.annotation)
    annotated = getattr(field.annotation, "__name__", "")
    kind = "choice" if choices else "trials" if annotated == "str" else annotated
    for default in (field.default, about.hstu):
        fits = default in choices if choices else type(default) is field.annotation
        if default is not None and not fits:
            expected = f"one of {', '.join(choices)}" if choices else f"of type {kind}, as annotated"
            raise TypeError(f"{name}: the default {default!r} must be {expected}")
    return cast(KnobType, kind)


def _engine_bounds(name: str, field: FieldInfo) -> str:
    """The bounds in interval notation, [8, 1024] or (0, 1]; raises TypeError if one of them is missing."""
    bounds = {bound: value for item in field.metadata for bound, value in _bounds_of(item)}
    if not (bounds.keys() & {"ge", "gt"} and bounds.keys() & {"le", "lt"}):
        raise TypeError(f"{name}: declare the engine's bounds, ge or gt and le or lt")
    left = f"[{bounds['ge']:g}" if "ge" in bounds else f"({bounds['gt']:g}"
    right = f"{bounds['le']:g}]" if "le" in bounds else f"{bounds['lt']:g})"
    return f"{left}, {right}"


def _bounds_of(constraint: object) -> Iterable[tuple[str, Any]]:
    """The name and value of one of pydantic's bounds (annotated_types.Ge, Gt, Le or Lt); nothing for other metadata."""
    return ((name, getattr(constraint, name)) for name in ("ge", "gt", "le", "lt") if hasattr(constraint, name))
