"""Norms of vectors inside the kernels, and gradients through the normalisation, for cosine scores."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

from . import reference

NORM_EPS = tl.constexpr(reference.NORM_EPS)


@triton.jit
def inverse_norms(vectors):
    """(rows, d) to (rows,): 1 / max(|v|, eps)."""
    v = vectors.to(tl.float32)
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(v * v, 1)), NORM_EPS)


@triton.jit
def through_norm(gradient, vectors, inverse):
    """Gradient in v of a function of v / |v|: (g - v^ (v^ . g)) / |v|; without the projection if |v| is clamped."""
    unit = vectors.to(tl.float32) * inverse[:, None]
    along = tl.where(inverse < 0.9999 / NORM_EPS, tl.sum(unit * gradient, 1), 0.0)  # the GPU's division is inexact
    return (gradient - unit * along[:, None]) * inverse[:, None]
