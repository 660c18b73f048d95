"""What a user calls."""

from __future__ import annotations

from typing import Any

from . import plan, unfused
from .dispatch import select
from .dtypes import F32
from .interop import ArrayView, view_of
from .operands import NewArray, Operands, one_device
from .problem import make_problem
from .runtime import Device


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    layout: str = "bshd",
    impl: str = "auto",
    return_lse: bool = False,
    batch_invariant: bool = False,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """O = softmax(softmax_scale · Q @ Kᵀ) @ V, exact, in float32 accumulation.

    Parameters
    ----------
    q : array, [batch, seqlen_q, num_heads, head_dim] or, for layout "bhsd", [batch, num_heads, seqlen_q, head_dim]
        float16 or bfloat16 (as NumPy dtype: ml_dtypes). NumPy arrays are copied to the GPU and the result back; a
        DeviceArray or any object with ``__cuda_array_interface__`` is used where it is, with any strides whose last
        is 1. head_dim is a multiple of 8, up to 256 (128 unfused).
    k, v : array, the same with seqlen_k and num_heads_kv
        num_heads_kv divides num_heads; query head h reads head h // (num_heads // num_heads_kv).
    softmax_scale : float, optional
        Factor of the scores; by default head_dim ** -0.5.
    causal : bool
        Query i sees keys j <= i + seqlen_k - seqlen_q (aligned to the bottom right).
    layout : str
        "bshd" or "bhsd", of q, k, v and the result.
    impl : str
        "auto" or "flash": one fused kernel. "unfused": three, with the scores in memory between them, for sequences of
        at least 1 (see :mod:`flashcore_drv.unfused`).
    return_lse : bool
        Also return log sum exp of the scores (natural logarithm), float32 [batch, num_heads, seqlen_q].
    batch_invariant : bool
        Make the bits of a sequence's result independent of the batch and of the number of heads. The order in which
        keys are added up depends on them only where small problems get a kernel of their own, which is left out: up to
        twice the time there, nothing elsewhere.
    out : array, optional
        Where to write the result: shape and dtype of q, not overlapping an input.
    stream : optional
        The CUDA stream to work on: an int handle or an object with ``__cuda_stream__``, ``cuda_stream`` or ``ptr``.
        By default the legacy default stream. With device arrays nothing is waited for.

    Returns
    -------
    array, or (array, array) with `return_lse`
        `out`, or a new NumPy array for NumPy inputs and a new DeviceArray otherwise. A query with nothing to attend to
        gets 0, and -inf as lse.

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
    """
    inputs = (q_view, k_view, v_view) = view_of(q, "q"), view_of(k, "k"), view_of(v, "v")
    out_view: ArrayView | NewArray
    out_view = NewArray("out", q_view.shape, q_view.dtype) if out is None else view_of(out, "out")
    problem = make_problem(
        q_view,
        k_view,
        v_view,
        out_view,
        softmax_scale=softmax_scale,
        causal=causal,
        layout=layout,
        return_lse=return_lse,
        batch_invariant=batch_invariant,
    )
    place = one_device([*inputs, out_view] if isinstance(out_view, ArrayView) else inputs)
    with Operands(place or Device.current(), stream, on_host=place is None) as operands:
        device = operands.device
        kernels = select(problem, device.arch, impl, device)
        address, result = operands.output(out_view)
        addresses = {"o": address} | {x.name: operands.input(x) for x in inputs}
        lse = None
        if return_lse:
            shape = problem.batch, problem.num_heads, problem.seqlen_q
            addresses["lse"], lse = operands.output(NewArray("lse", shape, F32.to_numpy()))
        if len(kernels) == 1:
            for launch in plan.plan_flash(device, kernels[0], problem, addresses):
                launch(operands.stream)
        else:
            unfused.attention(problem, kernels, operands, addresses)
    return (result, lse) if return_lse else result
