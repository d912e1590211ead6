"""Registration of our operations as `torch.ops.virtualmle.NAME`, for eager mode, torch.compile and CUDA graphs.

They are defined in a `torch.library.Library` rather than by `torch.library.custom_op`, because the first call of a
custom_op imports torch's compiler. That takes about three seconds; a small trial trains for five.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

NAMESPACE = "virtualmle"
# The registrations live as long as this object.
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


def register_op(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Define the op with this schema, "name(arguments) -> results", for every device, and return its callable.

    `run` computes the results outside autograd; they share no memory with the arguments. `fake` returns empty tensors
    of the same shapes and dtypes and reads no values.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.virtualmle, name).default


def register_gradient(name: str, save: Callable[..., None], gradients: Callable[..., Any]) -> None:
    """Make an op differentiable once; a second derivative raises an error.

    `save(ctx, inputs, output)` runs after the forward pass. `gradients(ctx, *gradients of the results)` returns one
    gradient for each argument of the op, None for arguments without a gradient.
    """
    backward = once_differentiable(gradients)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=save, lib=LIBRARY)
