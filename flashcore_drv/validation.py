"""From arguments to a problem: everything is checked here, once, before anything reaches the GPU. No CUDA here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .arguments import (
    SideInput,
    TensorLike,
    check_flag,
    check_head_dim,
    check_heads,
    check_layout,
    check_memory,
    check_output,
    check_same,
    matrices,
    packed_matrices,
    starts_on_16_bytes,
)
from .dtypes import BF16, F16, F32, dtype_of
from .problem import UNBOUNDED, Matrices, MergeProblem, Packed, Problem
from .scoring import (
    check_bias,
    check_cu_seqlens,
    check_max_seqlens,
    check_scale,
    check_seqused,
    check_sinks,
    check_slopes,
    check_softcap,
    check_window,
    packed_lengths,
)

NO_SIDES: Mapping[str, SideInput] = {}


def make_problem(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    out: TensorLike,
    sides: Mapping[str, SideInput] = NO_SIDES,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Any = None,
    softcap: float = 0.0,
    layout: str = "bshd",
    max_seqlens: tuple[int, int] | None = None,
    return_lse: bool = False,
    batch_invariant: bool = False,
) -> Problem:
    """The problem that array arguments pose.

    Parameters
    ----------
    q : TensorLike
        [batch, seqlen_q, num_heads, head_dim] for layout "bshd", [batch, num_heads, seqlen_q, head_dim] for "bhsd",
        [total_q, num_heads, head_dim] with `max_seqlens`; float16 or bfloat16, last dimension contiguous.
    k, v : TensorLike
        The same with seqlen_k (total_k) and num_heads_kv, a divisor of num_heads; v with head_dim_v columns.
    out : TensorLike
        As q, with head_dim_v columns.
    sides : mapping of str to SideInput
        Of alibi_slopes, bias, sinks, seqused_k, cu_seqlens_q, cu_seqlens_k those that there are; both cu_seqlens with
        `max_seqlens`, and none without.
    max_seqlens : (int, int), optional
        (max_seqlen_q, max_seqlen_k) of packed sequences.
    softmax_scale, causal, window_size, softcap, layout, return_lse, batch_invariant
        As in :func:`flashcore_drv.attention`.

    Raises
    ------
    InvalidArgument
        Naming the argument, its value and what is allowed.
    """
    dtype = dtype_of(q.dtype, q.name, (F16, BF16))
    lengths_k = None
    if max_seqlens is None:
        check_layout(layout)
        q_dims, k_dims, v_dims = (matrices(x, layout, empty=True) for x in (q, k, v))
    else:
        rows_q, rows_k = check_max_seqlens(*max_seqlens)
        batch = check_cu_seqlens(sides["cu_seqlens_q"], sides["cu_seqlens_k"])
        q_dims, k_dims, v_dims = (packed_matrices(x, batch, n) for x, n in ((q, rows_q), (k, rows_k), (v, rows_k)))
        packed_lengths(sides["cu_seqlens_q"], q.shape[0], rows_q)
        lengths_k = packed_lengths(sides["cu_seqlens_k"], k.shape[0], rows_k)
        check_same(v.name, "total_k", v.shape[0], k.name, k.shape[0])
    for x, dims in ((k, k_dims), (v, v_dims)):
        check_same(x.name, "dtype", x.dtype, q.name, q.dtype)
        check_same(x.name, "batch", dims.batch, q.name, q_dims.batch)
    check_same(k.name, "head_dim", k_dims.cols, q.name, q_dims.cols)
    check_head_dim(q_dims.cols, q.name)
    check_head_dim(v_dims.cols, v.name)
    check_same(v.name, "num_heads_kv", v_dims.heads, k.name, k_dims.heads)
    check_same(v.name, "seqlen_k", v_dims.rows, k.name, k_dims.rows)
    check_heads(q_dims.heads, k_dims.heads)
    check_output(out, (*q.shape[:-1], v_dims.cols), dtype, (q, k, v, *sides.values()))
    o_dims = matrices(out, layout, empty=True) if max_seqlens is None else packed_matrices(out, batch, rows_q)

    invariant = check_flag(batch_invariant, "batch_invariant")
    left, right = check_window(check_flag(causal, "causal"), window_size)
    if max_seqlens is None or not invariant:  # else the other sequences' lengths could choose the kernel
        left = UNBOUNDED if left >= k_dims.rows - 1 else left
        right = UNBOUNDED if right >= q_dims.rows - 1 else right
    scale = check_scale(softmax_scale, q_dims.cols)
    slopes, bias, sinks, used = (sides.get(name) for name in ("alibi_slopes", "bias", "sinks", "seqused_k"))
    if sinks is not None:
        check_sinks(sinks, q_dims.heads)
    if used is not None:
        check_seqused(used, q_dims.batch, k_dims.rows, lengths_k)
    return Problem(
        q_dims,
        k_dims,
        v_dims,
        o_dims,
        dtype,
        scale,
        left,
        right,
        check_softcap(softcap, scale),
        None if slopes is None else check_slopes(slopes, q_dims.batch, q_dims.heads),
        None if bias is None else check_bias(bias, (*q_dims.shape[:3], k_dims.rows)),
        sinks is not None,
        used is not None,
        None if max_seqlens is None else Packed(q.shape[0], k.shape[0]),
        check_flag(return_lse, "return_lse"),
        all(starts_on_16_bytes(*x) for x in ((q, q_dims), (k, k_dims), (v, v_dims), (out, o_dims))),
        invariant,
    )


def make_merge_problem(
    out_a: TensorLike,
    lse_a: TensorLike,
    out_b: TensorLike,
    lse_b: TensorLike,
    out: TensorLike,
    lse: TensorLike,
    layout: str = "bshd",
) -> MergeProblem:
    """The problem of merging two results; arguments as those of :func:`flashcore_drv.attention_merge`.

    Raises
    ------
    InvalidArgument
        Naming the argument, its value and what is allowed.
    """
    check_layout(layout)
    dtype = dtype_of(out_a.dtype, out_a.name, (F16, BF16))
    check_same(out_b.name, "dtype", out_b.dtype, out_a.name, out_a.dtype)
    check_same(out_b.name, "shape", out_b.shape, out_a.name, out_a.shape)
    packed = len(out_a.shape) == 3

    def dims_of(x: TensorLike) -> Matrices:
        return packed_matrices(x, 1, x.shape[0]) if packed else matrices(x, layout, empty=True)

    a, b = dims_of(out_a), dims_of(out_b)
    check_head_dim(a.cols, out_a.name)
    for x in (lse_a, lse_b):
        dtype_of(x.dtype, x.name, (F32,))
        check_same(x.name, "shape", x.shape, "that of " + out_a.name, a.shape[1:3] if packed else a.shape[:3])
    check_output(out, out_a.shape, dtype, (out_a, lse_a, out_b, lse_b))
    o = dims_of(out)
    sums = [Matrices(*a.shape[:3], 1, *([0] * packed), *check_memory(x)) for x in (lse_a, lse_b, lse)]
    return MergeProblem(
        a,
        sums[0],
        b,
        sums[1],
        o,
        sums[2],
        dtype,
        all(starts_on_16_bytes(*x) for x in ((out_a, a), (out_b, b), (out, o))),
    )
