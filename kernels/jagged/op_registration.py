"""How our operations become known to torch: `torch.ops.virtualmle.NAME`, for eager mode, torch.compile and CUDA graphs.

They are defined in a `torch.library.Library` and not by `torch.library.custom_op`, because the first call of such an op
imports torch's compiler: about three seconds, where a small trial trains for five.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

NAMESPACE = "virtualmle"
# The registrations last as long as this object.
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


def register_op(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define the op of this schema, "name(arguments) -> results", for every device; returns the op, to be called.

    `run` computes it where autograd does not look; what it returns shares no memory with its arguments. `fake` returns
    empty tensors of the same shapes and dtypes and reads no values.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.virtualmle, name).default


def register_gradient(name: str, save: Callable[..., None], gradients: Callable[..., Any]) -> None:
    """Make an op differentiable once; a second derivative raises an error.

    `save(ctx, inputs, output)` runs after the forward pass; `gradients(ctx, *gradients of the results)` returns one
    gradient for each argument of the op, None where there is none.
    """
    backward = once_differentiable(gradients)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=save, lib=LIBRARY)
