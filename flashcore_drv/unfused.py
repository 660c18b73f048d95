"""Attention in three kernels, the scores in memory between them: to study, to check against, and to fall back on.

:func:`qk`, :func:`softmax` and :func:`pv` are the stages; :func:`attention` chains them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import dispatch
from .arguments import check_flag, check_head_dim, check_heads, check_layout, check_output, check_same, matrices
from .catalog import KernelSpec
from .dtypes import BF16, F16, F32, DType, dtype_of
from .errors import InvalidArgument
from .interop import ArrayView, view_of
from .operands import NewArray, Operands, one_device
from .plan import contiguous, plan_stages, unfused_params
from .problem import Matrices, Problem
from .runtime import Device, Launch
from .scoring import check_scale

_ROW_ELEMENTS = 8  # rows of S and P of our own start on 16 bytes, so that every access is a vector


def workspace(problem: Problem) -> tuple[Matrices, Matrices]:
    """The scores S (float32) and the probabilities P (the problem's dtype) of a problem, with aligned rows."""
    shape = problem.batch, problem.num_heads, problem.seqlen_q, problem.seqlen_k
    return contiguous(*shape, _ROW_ELEMENTS), contiguous(*shape, _ROW_ELEMENTS)


def plan_attention(
    problem: Problem, kernels: tuple[KernelSpec, ...], device: Device, addresses: dict[str, int]
) -> list[Launch]:
    """The launches of qk, softmax and pv.

    Parameters
    ----------
    problem : Problem
        What to compute.
    kernels : tuple of KernelSpec
        From :func:`flashcore_drv.dispatch.select`.
    device : Device
        Where.
    addresses : dict of str to int
        Device addresses of q, k, v, o, s, p (as :func:`workspace` lays them out) and, if wanted, lse
        [batch, num_heads, seqlen_q].
    """
    scores, probabilities = workspace(problem)
    dims = {"q": problem.q, "k": problem.k, "v": problem.v, "o": problem.o, "s": scores, "p": probabilities}
    dims["lse"] = contiguous(problem.batch, problem.num_heads, problem.seqlen_q, 1)
    params = unfused_params(
        {name: (address, dims[name]) for name, address in addresses.items()},
        batch=problem.batch,
        num_heads=problem.num_heads,
        num_heads_kv=problem.num_heads_kv,
        seqlen_q=problem.seqlen_q,
        seqlen_k=problem.seqlen_k,
        head_dim=problem.head_dim,
        softmax_scale=problem.softmax_scale,
        causal=problem.causal,
    )
    return plan_stages(device, list(zip(kernels, (scores, probabilities, problem.o))), params)


def attention(problem: Problem, kernels: tuple[KernelSpec, ...], operands: Operands, addresses: dict[str, int]) -> None:
    """Queue qk, softmax and pv with a workspace that lasts as long as the call."""
    scores, probabilities = workspace(problem)
    for name, dims, dtype in (("s", scores, F32), ("p", probabilities, problem.dtype)):
        elements = dims.batch * dims.batch_stride
        nbytes = elements * dtype.itemsize
        addresses[name] = operands.scratch((nbytes,), np.dtype(np.uint8)).address
    for launch in plan_attention(problem, kernels, operands.device, addresses):
        launch(operands.stream)


def qk(
    q: Any,
    k: Any,
    *,
    softmax_scale: float | None = None,
    layout: str = "bshd",
    out: Any = None,
    stream: Any = None,
) -> Any:
    """S = softmax_scale · Q @ Kᵀ.

    Parameters
    ----------
    q : array, [batch, seqlen_q, num_heads, head_dim] or, for layout "bhsd", [batch, num_heads, seqlen_q, head_dim]
        float16 or bfloat16; NumPy, DeviceArray or CUDA Array Interface; last dimension contiguous.
    k : array, the same with seqlen_k and num_heads_kv
        num_heads_kv divides num_heads; query head h reads key head h // (num_heads // num_heads_kv).
    softmax_scale : float, optional
        By default head_dim ** -0.5.
    layout : str
        "bshd" or "bhsd", of q and k.
    out : array, [batch, num_heads, seqlen_q, seqlen_k], float32, optional
        Where to write S; last dimension contiguous, not overlapping q or k.
    stream : optional
        A CUDA stream, see :meth:`flashcore_drv.runtime.Stream.of`; by default the legacy default stream.

    Returns
    -------
    array, [batch, num_heads, seqlen_q, seqlen_k], float32
        `out`, or a new NumPy array for NumPy inputs and a new DeviceArray otherwise.

    Raises
    ------
    InvalidArgument
        Naming the argument, its value and what is allowed.
    Unsupported
        If no kernel is built for the head_dim or GPU.
    """
    check_layout(layout)
    q_view, k_view = view_of(q, "q"), view_of(k, "k")
    dtype = dtype_of(q_view.dtype, "q")
    q_dims, k_dims = matrices(q_view, layout), matrices(k_view, layout)
    check_same("k", "dtype", k_view.dtype, "q", q_view.dtype)
    check_same("k", "batch", k_dims.batch, "q", q_dims.batch)
    check_same("k", "head_dim", k_dims.cols, "q", q_dims.cols)
    check_head_dim(q_dims.cols, "q")
    check_heads(q_dims.heads, k_dims.heads)
    scale = check_scale(softmax_scale, q_dims.cols)
    shape = q_dims.batch, q_dims.heads, q_dims.rows, k_dims.rows
    out_view = _output(out, "out", shape, F32, (q_view, k_view))
    with _call([q_view, k_view, out_view], stream) as operands:
        spec = dispatch.select_qk(dtype, q_dims.cols, operands.device.arch)
        result = matrices(out_view)
        address, array = operands.output(out_view)
        params = unfused_params(
            {"q": (operands.input(q_view), q_dims), "k": (operands.input(k_view), k_dims), "s": (address, result)},
            batch=q_dims.batch,
            num_heads=q_dims.heads,
            num_heads_kv=k_dims.heads,
            seqlen_q=q_dims.rows,
            seqlen_k=k_dims.rows,
            head_dim=q_dims.cols,
            softmax_scale=scale,
        )
        plan_stages(operands.device, [(spec, result)], params)[0](operands.stream)
    return array


def softmax(
    s: Any,
    *,
    dtype: Any = np.float16,
    causal: bool = False,
    return_lse: bool = False,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """P = softmax(S) over the last dimension.

    Parameters
    ----------
    s : array, [batch, num_heads, seqlen_q, seqlen_k], float32
        Scores; last dimension contiguous.
    dtype : numpy.dtype
        float16 or bfloat16, of P.
    causal : bool
        Query i sees keys j <= i + seqlen_k - seqlen_q; the others get 0.
    return_lse : bool
        Also return log sum exp(S) (natural logarithm), float32 [batch, num_heads, seqlen_q].
    out, stream
        As in :func:`qk`; `out` has the shape of `s` and `dtype`.

    Returns
    -------
    array, or (array, array) with `return_lse`
        A row with nothing to attend to is 0, its lse -inf.

    Raises
    ------
    InvalidArgument, Unsupported
        As :func:`qk`.
    """
    s_view = view_of(s, "s")
    dtype_of(s_view.dtype, "s", (F32,))
    dims = matrices(s_view)
    kind = dtype_of(_numpy_dtype(dtype), "dtype", (F16, BF16))
    masked, with_lse = check_flag(causal, "causal"), check_flag(return_lse, "return_lse")
    out_view = _output(out, "out", dims.shape, kind, (s_view,))
    with _call([s_view, out_view], stream) as operands:
        spec = dispatch.select_softmax(kind, dims.cols, operands.device.arch)
        result = matrices(out_view)
        address, array = operands.output(out_view)
        tensors = {"s": (operands.input(s_view), dims), "p": (address, result)}
        lse = None
        if with_lse:
            lse_address, lse = operands.output(NewArray("lse", dims.shape[:3], F32.to_numpy()))
            tensors["lse"] = lse_address, contiguous(dims.batch, dims.heads, dims.rows, 1)
        params = unfused_params(
            tensors,
            batch=dims.batch,
            num_heads=dims.heads,
            num_heads_kv=dims.heads,
            seqlen_q=dims.rows,
            seqlen_k=dims.cols,
            causal=masked,
        )
        plan_stages(operands.device, [(spec, result)], params)[0](operands.stream)
    return (array, lse) if with_lse else array


def pv(p: Any, v: Any, *, layout: str = "bshd", out: Any = None, stream: Any = None) -> Any:
    """O = P @ V, keys added up in fp32, in order, by one block a row: the same bits on every run.

    Parameters
    ----------
    p : array, [batch, num_heads, seqlen_q, seqlen_k], float16 or bfloat16
        Probabilities; last dimension contiguous.
    v : array, [batch, seqlen_k, num_heads_kv, head_dim]
        Or, for layout "bhsd", [batch, num_heads_kv, seqlen_k, head_dim]; values, of the dtype of p.
    layout : str
        "bshd" or "bhsd", of v and of the result.
    out, stream
        As in :func:`qk`; `out` has the shape and dtype of the result.

    Returns
    -------
    array, [batch, seqlen_q, num_heads, head_dim] or, for layout "bhsd", [batch, num_heads, seqlen_q, head_dim]

    Raises
    ------
    InvalidArgument, Unsupported
        As :func:`qk`.
    """
    check_layout(layout)
    p_view, v_view = view_of(p, "p"), view_of(v, "v")
    dtype = dtype_of(p_view.dtype, "p")
    p_dims, v_dims = matrices(p_view), matrices(v_view, layout)
    check_same("v", "dtype", v_view.dtype, "p", p_view.dtype)
    check_same("v", "batch", v_dims.batch, "p", p_dims.batch)
    check_same("v", "seqlen_k", v_dims.rows, "p", p_dims.cols)
    check_head_dim(v_dims.cols, "v")
    check_heads(p_dims.heads, v_dims.heads)
    batch, heads, rows, cols = p_dims.batch, p_dims.heads, p_dims.rows, v_dims.cols
    shape = (batch, rows, heads, cols) if layout == "bshd" else (batch, heads, rows, cols)
    out_view = _output(out, "out", shape, dtype, (p_view, v_view))
    with _call([p_view, v_view, out_view], stream) as operands:
        spec = dispatch.select_pv(dtype, cols, operands.device.arch)
        result = matrices(out_view, layout)
        address, array = operands.output(out_view)
        params = unfused_params(
            {"p": (operands.input(p_view), p_dims), "v": (operands.input(v_view), v_dims), "o": (address, result)},
            batch=batch,
            num_heads=heads,
            num_heads_kv=v_dims.heads,
            seqlen_q=rows,
            seqlen_k=p_dims.cols,
            head_dim=cols,
        )
        plan_stages(operands.device, [(spec, result)], params)[0](operands.stream)
    return array


def _output(
    out: Any, name: str, shape: tuple[int, ...], dtype: DType, inputs: tuple[ArrayView, ...]
) -> ArrayView | NewArray:
    view = NewArray(name, shape, dtype.to_numpy()) if out is None else view_of(out, name)
    check_output(view, shape, dtype, inputs)
    return view


def _call(views: list[ArrayView | NewArray], stream: object) -> Operands:
    device = one_device([v for v in views if isinstance(v, ArrayView)])
    return Operands(device or Device.current(), stream, on_host=device is None)


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise InvalidArgument(f"dtype={dtype!r} is not a dtype; allowed: float16, bfloat16") from None
    return found
