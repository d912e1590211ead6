"""The width that Triton kernels pad a vector to: a power of two, as block shapes are, and at least 16 for products."""


def padded_width(width: int) -> int:
    """The smallest power of two that is at least `width` and at least 16."""
    return max(16, 1 << (width - 1).bit_length())
