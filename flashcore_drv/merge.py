"""Putting together results over disjoint sets of keys."""

from __future__ import annotations

from typing import Any

from . import dispatch, plan
from .dtypes import F32
from .interop import view_of
from .operands import NewArray, Operands, one_device
from .runtime import Device
from .validation import make_merge_problem


def attention_merge(
    out_a: Any, lse_a: Any, out_b: Any, lse_b: Any, *, layout: str = "bshd", out: Any = None, stream: Any = None
) -> tuple[Any, Any]:
    """Attention over all keys, from the results over two disjoint parts of them (FlashAttention-2, arXiv:2307.08691).

    With m = max(lse_a, lse_b), w_a = exp(lse_a - m) and w_b = exp(lse_b - m), in float32:

        out = (w_a · out_a + w_b · out_b) / (w_a + w_b)        lse = m + log(w_a + w_b)

    Parameters
    ----------
    out_a, out_b : array, [batch, seqlen_q, num_heads, head_dim_v], for layout "bhsd" [batch, num_heads, seqlen_q, ...]
        Results of :func:`attention` for the same queries, or of :func:`attention_varlen`, [total_q, num_heads,
        head_dim_v]. float16 or bfloat16; NumPy, DeviceArray or CUDA Array Interface; last dimension contiguous.
    lse_a, lse_b : array, [batch, num_heads, seqlen_q] or [num_heads, total_q], float32
        Their log sum exp. Sinks must have been given to one of the parts only.
    layout : str
        "bshd" or "bhsd", of out_a, out_b and the result; packed sequences have one layout.
    out : array, optional
        Where to write the result: shape and dtype of out_a, not overlapping an input.
    stream : optional
        As in :func:`attention`.

    Returns
    -------
    out, lse : array, array
        `out`, or a new array, and a new array of the shape of lse_a. A row that is -inf in lse_a and lse_b gets 0, and
        -inf as lse.

    Raises
    ------
    InvalidArgument, Unsupported, KernelImageError, DriverError
        As :func:`attention`.

    Examples
    --------
    Causal attention over keys in two places, the second holding the last 100:

    >>> a = fc.attention(q, k_a, v_a, window_size=(None, 100), return_lse=True)
    >>> b = fc.attention(q, k_b, v_b, causal=True, return_lse=True)
    >>> out, lse = fc.attention_merge(*a, *b)
    """
    inputs = view_of(out_a, "out_a"), view_of(lse_a, "lse_a"), view_of(out_b, "out_b"), view_of(lse_b, "lse_b")
    given = None if out is None else view_of(out, "out")
    out_view = given or NewArray("out", inputs[0].shape, inputs[0].dtype)
    lse_view = NewArray("lse", inputs[1].shape, F32.to_numpy())
    problem = make_merge_problem(*inputs, out_view, lse_view, layout)
    place = one_device([*inputs, given] if given else inputs)
    with Operands(place or Device.current(), stream, on_host=place is None) as operands:
        spec = dispatch.select_merge(problem.dtype, operands.device.arch)
        out_address, result = operands.output(out_view)
        lse_address, lse = operands.output(lse_view)
        addresses = {"o": out_address, "lse": lse_address} | {x.name: operands.input(x) for x in inputs}
        for launch in plan.plan_merge(operands.device, spec, problem, addresses):
            launch(operands.stream)
    return result, lse
