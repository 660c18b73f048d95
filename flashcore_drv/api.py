"""What a user calls."""

from __future__ import annotations

from typing import Any

from . import plan, unfused
from .dispatch import select
from .dtypes import F32
from .errors import InvalidArgument
from .interop import ArrayView, view_of
from .operands import NewArray, Operands, one_device
from .problem import Problem
from .runtime import Device
from .validation import make_problem


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    sinks: Any = None,
    seqused_k: Any = None,
    layout: str = "bshd",
    impl: str = "auto",
    return_lse: bool = False,
    batch_invariant: bool = False,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """O = softmax(scores) @ V, exact, in float32 accumulation (FlashAttention-2, arXiv:2307.08691).

    A sequence's last query is at its last key: query i is at place i + seqlen_k - seqlen_q. Its score for key j is

        softcap(softmax_scale · q_i · k_j) + bias[i, j] - alibi_slope · |i + seqlen_k - seqlen_q - j|

    Parameters
    ----------
    q : array, [batch, seqlen_q, num_heads, head_dim] or, for layout "bhsd", [batch, num_heads, seqlen_q, head_dim]
        float16 or bfloat16 (as NumPy dtype: ml_dtypes). NumPy arrays are copied to the GPU and the result back; a
        DeviceArray or any object with ``__cuda_array_interface__`` is used where it is, with any strides whose last
        is 1. head_dim is a multiple of 8, up to 256 (128 unfused).
    k : array, the same with seqlen_k and num_heads_kv
        num_heads_kv divides num_heads; query head h reads head h // (num_heads // num_heads_kv).
    v : array, as k, with head_dim_v columns
        head_dim_v, a multiple of 8 up to 256, may differ from head_dim.
    softmax_scale : float, optional
        Factor of the products; by default head_dim ** -0.5.
    causal : bool
        A query sees no key after its own place.
    window_size : (int or None, int or None), optional
        (left, right): keys before and after its own place that a query sees; None or -1: all. (w - 1, 0) is a sliding
        window of w keys. With `causal` the right side is 0.
    softcap : float
        softcap(x) = softcap · tanh(x / softcap), which keeps it between -softcap and softcap (Gemma 2,
        arXiv:2408.00118); 0: x.
    alibi_slopes : array, [num_heads] or [batch, num_heads], float32, optional
        What a score loses for each key between it and the query's place (ALiBi, arXiv:2108.12409).
    bias : array, [batch, num_heads, seqlen_q, seqlen_k], any of them may be 1, optional
        float16, bfloat16 or float32; the last dimension contiguous or broadcast. -inf hides a key.
    sinks : array, [num_heads], float32, optional
        The logit of each head's sink, which takes part in the softmax and adds nothing to the result: the denominator
        gains exp(sink), and so does that of `lse` (arXiv:2309.17453; a logit a head: gpt-oss, arXiv:2508.10925).
    seqused_k : array, [batch], int32, optional
        How many of its keys each sequence has; the rest of k and v is not read. It takes the place of seqlen_k above.
    layout : str
        "bshd" or "bhsd", of q, k, v and the result.
    impl : str
        "auto" or "flash": one fused kernel. "unfused": three, with the scores in memory between them, for sequences of
        at least 1 and without window_size and what follows it here (see :mod:`flashcore_drv.unfused`).
    return_lse : bool
        Also return log sum exp of the scores (natural logarithm), float32 [batch, num_heads, seqlen_q].
    batch_invariant : bool
        Make the bits of a sequence's result independent of the batch and of the number of heads. The order in which
        keys are added up depends on them only where small problems get a kernel of their own, which is left out (up to
        twice the time there), and where a window hides nothing even of the longest packed sequence; nothing elsewhere.
    out : array, optional
        Where to write the result: shape of q with head_dim_v columns, dtype of q, not overlapping an input.
    stream : optional
        The CUDA stream to work on: an int handle or an object with ``__cuda_stream__``, ``cuda_stream`` or ``ptr``.
        By default the legacy default stream. With device arrays nothing is waited for.

    Returns
    -------
    array, or (array, array) with `return_lse`
        `out`, or a new NumPy array for NumPy inputs and a new DeviceArray otherwise. A query with nothing to attend to
        gets 0, and as lse its sink, -inf without sinks.

    Raises
    ------
    InvalidArgument
        Before anything reaches the GPU: the argument, its value and what is allowed.
    Unsupported
        If no kernel is built for the problem on this GPU.
    KernelImageError
        If the kernel's file is missing or stale.
    DriverError
        If the driver fails, for example out of memory.

    Notes
    -----
    alibi_slopes, bias, sinks and seqused_k may be NumPy arrays beside q, k and v on the GPU: they are copied in the
    stream. NumPy values are checked (finite slopes, seqused_k from 0 to seqlen_k). Those on the GPU cannot be, without
    waiting for it; lengths are clamped there, so that wrong ones make the result wrong and nothing else.
    """
    arrays = view_of(q, "q"), view_of(k, "k"), view_of(v, "v")
    sides = _sides(alibi_slopes=alibi_slopes, bias=bias, sinks=sinks, seqused_k=seqused_k)
    out_view = _output(out, *arrays)
    problem = make_problem(
        *arrays,
        out_view,
        sides,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        layout=layout,
        return_lse=return_lse,
        batch_invariant=batch_invariant,
    )
    return _compute(problem, arrays, sides, out_view, impl, stream)


def attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] | None = None,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    sinks: Any = None,
    seqused_k: Any = None,
    return_lse: bool = False,
    batch_invariant: bool = False,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """Attention of sequences of different lengths, packed one after the other; see :func:`attention`.

    Sequence b has the queries cu_seqlens_q[b] to cu_seqlens_q[b + 1] and the keys cu_seqlens_k[b] to
    cu_seqlens_k[b + 1], of which it uses the first seqused_k[b]. Either may be none.

    Parameters
    ----------
    q : array, [total_q, num_heads, head_dim]
        The queries of all sequences. Types, strides and places as in :func:`attention`.
    k, v : array, [total_k, num_heads_kv, head_dim], [total_k, num_heads_kv, head_dim_v]
        The keys and values of all sequences.
    cu_seqlens_q, cu_seqlens_k : array, [batch + 1], int32
        Where each sequence begins, and where the last ends: from 0, never falling, at most total_q (total_k). Rows of
        the result after the last sequence are not written (0 in a new NumPy array).
    max_seqlen_q, max_seqlen_k : int
        The longest sequence's queries and keys, or more. Queries past max_seqlen_q are not computed.
    softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, seqused_k, return_lse, batch_invariant
        As in :func:`attention`, with each sequence's own lengths; lse is [num_heads, total_q].
    bias : None
        Refused: a bias is a rectangle of one length for all.
    out, stream
        As in :func:`attention`.

    Returns
    -------
    array, [total_q, num_heads, head_dim_v], or (array, array) with `return_lse`

    Raises
    ------
    InvalidArgument, Unsupported, KernelImageError, DriverError
        As :func:`attention`.

    Notes
    -----
    cu_seqlens_q and cu_seqlens_k may be NumPy arrays or on the GPU, as alibi_slopes in :func:`attention`, and so are
    they checked or clamped: to rows that there are, and to max_seqlen_q rows a sequence.
    """
    if bias is not None:
        raise InvalidArgument(
            "bias of packed sequences: a bias is [batch, num_heads, seqlen_q, seqlen_k], of one length for all, and "
            "theirs differ; allowed: None (attention() takes a bias, and alibi_slopes work here)"
        )
    arrays = view_of(q, "q"), view_of(k, "k"), view_of(v, "v")
    sides = _sides(
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        seqused_k=seqused_k,
    )
    out_view = _output(out, *arrays)
    problem = make_problem(
        *arrays,
        out_view,
        sides,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        max_seqlens=(max_seqlen_q, max_seqlen_k),
        return_lse=return_lse,
        batch_invariant=batch_invariant,
    )
    return _compute(problem, arrays, sides, out_view, "flash", stream)


def _sides(**arrays: Any) -> dict[str, ArrayView]:
    """The views of the small inputs that are given."""
    return {name: view_of(x, name) for name, x in arrays.items() if x is not None}


def _output(out: Any, q: ArrayView, k: ArrayView, v: ArrayView) -> ArrayView | NewArray:
    if out is not None:
        return view_of(out, "out")
    return NewArray("out", q.shape[:-1] + v.shape[-1:], q.dtype)


def _compute(
    problem: Problem,
    arrays: tuple[ArrayView, ArrayView, ArrayView],
    sides: dict[str, ArrayView],
    out: ArrayView | NewArray,
    impl: str,
    stream: Any,
) -> Any:
    """Launch what solves a problem: the result, and lse if it is wanted."""
    place = one_device([*arrays, out] if isinstance(out, ArrayView) else arrays, sides.values())
    with Operands(place or Device.current(), stream, on_host=place is None) as operands:
        device = operands.device
        kernels = select(problem, device.arch, impl, device)
        partial = problem.varlen is not None
        address, result = operands.output(out, partial)
        addresses = {"o": address} | {x.name: operands.input(x) for x in arrays} | operands.side_inputs(sides.values())
        lse = None
        if problem.return_lse:
            addresses["lse"], lse = operands.output(NewArray("lse", problem.lse_shape, F32.to_numpy()), partial)
        if len(kernels) == 1:
            for launch in plan.plan_flash(device, kernels[0], problem, addresses):
                launch(operands.stream)
        else:
            unfused.attention(problem, kernels, operands, addresses)
    return (result, lse) if problem.return_lse else result
