"""HSTU attention of short sequences (max_len <= 256) in Triton: one program serves a tile of consecutive tokens.

packed_forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor
    q, k (total_tokens, heads, dqk), v (total_tokens, heads, dv), of one dtype (float32, float16, bfloat16), any
    strides; total_tokens > 0. Returns out like v, contiguous.
packed_backward(grad: Tensor, q, k, v, call) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
    grad like out. dq, dk, dv contiguous, and the gradients of the two tables in the tables' shapes and dtypes, None
    where there is no table.
"""
