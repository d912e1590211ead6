"""The declaration of a knob: mistakes are refused when the package is imported."""

from typing import Any, ClassVar, Literal

import pytest

from virtualmle.models.knobs.declaration import Dimension, KnobGroup, declared_knobs, knob


def declare(kind: Any, default: Any, **details: Any) -> None:
    class Group(KnobGroup):
        dimension: ClassVar[Dimension] = "capacity"
        size: kind = knob(default, "a size", **details)

    declared_knobs([Group])


@pytest.mark.parametrize(
    ("kind", "default", "details", "message"),
    [
        (float, 0, {"ge": 0, "le": 1}, "size: the default 0 must be of type float"),
        (int, 0.0, {"ge": 0, "le": 1}, "size: the default 0.0 must be of type int"),
        (float, 0.5, {"ge": 0, "le": 1, "hstu": 1}, "size: the default 1 must be of type float"),
        (int, True, {"ge": 0, "le": 1}, "size: the default True must be of type int"),
        (Literal["small", "large"], "medium", {}, "size: the default 'medium' must be one of small, large"),
        (float, 0.0, {}, "size: declare the engine's bounds"),
        (float, 0.0, {"le": 1}, "size: declare the engine's bounds"),
    ],
)
def test_a_default_of_another_type_and_a_missing_bound_are_refused(
    kind: Any, default: Any, details: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        declare(kind, default, **details)


def test_a_knob_with_both_bounds_and_a_fitting_default_is_declared() -> None:
    declare(float, 0.5, gt=0, lt=1)
    declare(Literal["small", "large"], "small", hstu="large")
