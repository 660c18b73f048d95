"""An attention problem: shapes, dtype, strides and options, validated, frozen and hashable. No CUDA here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .dtypes import BF16, F16, DType, dtype_of
from .errors import InvalidArgument

LAYOUTS = ("bshd", "bhsd")
MAX_SEQLEN = 1 << 30  # row and key indices stay far from the end of int32
MAX_EXTENT = 1 << 31  # batch and heads, as int32


class TensorLike(Protocol):
    """What a problem is made from: an array argument seen from outside."""

    @property
    def name(self) -> str:
        """The argument's name, for messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each dimension."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Distance of neighbours, in elements."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""

    @property
    def address(self) -> int:
        """Address of the first element."""

    @property
    def gpu_address(self) -> int:
        """Address of the first element on the GPU; 0, which is as aligned as any, where the call chooses it."""

    @property
    def span(self) -> tuple[int, int]:
        """Addresses of the first byte and of the one past the last."""

    @property
    def writeable(self) -> bool:
        """Whether it may be an output."""


@dataclass(frozen=True)
class Matrices:
    """A tensor [batch, heads, rows, cols] whose cols are contiguous; strides in elements, 0 along a dimension of 1."""

    batch: int
    heads: int
    rows: int
    cols: int
    batch_stride: int
    head_stride: int
    row_stride: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, heads, rows, cols)."""
        return self.batch, self.heads, self.rows, self.cols


@dataclass(frozen=True)
class Problem:
    """softmax(softmax_scale · Q @ Kᵀ) @ V for num_heads query heads on num_heads_kv key and value heads.

    Attributes
    ----------
    q, o : Matrices
        [batch, num_heads, seqlen_q, head_dim]
    k, v : Matrices
        [batch, num_heads_kv, seqlen_k, head_dim]
    dtype : DType
        Of q, k, v and o.
    softmax_scale : float
        Factor of the scores.
    causal : bool
        Query i sees keys j <= i + seqlen_k - seqlen_q (aligned to the bottom right, as in FlashAttention).
    return_lse : bool
        Whether log sum exp of the scores is wanted, float32 [batch, num_heads, seqlen_q].
    aligned : bool
        Whether every row of q, k, v and o starts on 16 bytes.
    batch_invariant : bool
        Whether the bits of a sequence must not depend on the batch.
    """

    q: Matrices
    k: Matrices
    v: Matrices
    o: Matrices
    dtype: DType
    softmax_scale: float
    causal: bool = False
    return_lse: bool = False
    aligned: bool = True
    batch_invariant: bool = False

    @property
    def batch(self) -> int:
        """Independent problems of the same shape."""
        return self.q.batch

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.q.heads

    @property
    def num_heads_kv(self) -> int:
        """Key and value heads."""
        return self.k.heads

    @property
    def seqlen_q(self) -> int:
        """Queries."""
        return self.q.rows

    @property
    def seqlen_k(self) -> int:
        """Keys."""
        return self.k.rows

    @property
    def head_dim(self) -> int:
        """Columns of q and k."""
        return self.q.cols

    @property
    def flops(self) -> int:
        """Floating-point operations of both products; causal counts the visible part of the scores only."""
        scores = self.seqlen_q * self.seqlen_k
        if self.causal:  # the last query sees seqlen_k keys, the one before it one fewer, and so on down to none
            rows = min(self.seqlen_q, self.seqlen_k)
            scores = rows * (2 * self.seqlen_k - rows + 1) // 2
        return 4 * self.batch * self.num_heads * scores * self.head_dim

    @property
    def min_bytes(self) -> int:
        """Bytes that any implementation must move: each input read once, the output written once."""
        elements = 2 * math.prod(self.q.shape) + math.prod(self.k.shape) + math.prod(self.v.shape)
        return elements * self.dtype.itemsize + (4 * math.prod(self.q.shape[:3]) if self.return_lse else 0)


def check_layout(layout: str) -> None:
    """Raise InvalidArgument unless `layout` is known."""
    if layout not in LAYOUTS:
        raise InvalidArgument(f"layout={layout!r}; allowed: {', '.join(map(repr, LAYOUTS))}")


def matrices(x: TensorLike, layout: str = "bhsd", empty: bool = False) -> Matrices:
    """The dimensions of an array argument in this layout; with `empty` there may be no rows. Raises InvalidArgument."""
    if len(x.shape) != 4:
        raise InvalidArgument(f"{x.name} has shape {x.shape}, {len(x.shape)} dimensions; allowed: 4 ({layout})")
    if 0 in x.shape and not (empty and x.shape[layout.index("s")] == 0 and x.shape.count(0) == 1):
        length = ", a sequence length 0 or more" if empty else ""
        raise InvalidArgument(f"{x.name} has shape {x.shape}; allowed: every dimension at least 1{length}")
    strides = [0 if n <= 1 else s for n, s in zip(x.shape, x.strides)]
    if x.shape[3] > 1 and x.strides[3] != 1:
        raise InvalidArgument(f"{x.name} has strides {x.strides} (elements); allowed: a last stride of 1")
    if any(s < 0 for s in strides):
        raise InvalidArgument(f"{x.name} has strides {x.strides} (elements); allowed: none below 0")
    if x.address % x.dtype.itemsize:
        raise InvalidArgument(f"{x.name} is at {x.address:#x}; allowed: a multiple of {x.dtype.itemsize}")
    if x.span[1] >= 1 << 63:
        raise InvalidArgument(f"{x.name} with strides {x.strides} reaches past the last address of 63 bits")
    order = (0, 2, 1) if layout == "bshd" else (0, 1, 2)
    batch, heads, rows = (x.shape[i] for i in order)
    if rows > MAX_SEQLEN:
        raise InvalidArgument(f"{x.name} has a sequence length of {rows}; allowed: up to {MAX_SEQLEN}")
    if max(batch, heads) >= MAX_EXTENT:
        raise InvalidArgument(f"{x.name} has shape {x.shape}; allowed: fewer than {MAX_EXTENT} along a dimension")
    return Matrices(batch, heads, rows, x.shape[3], *(strides[i] for i in order))


def starts_on_16_bytes(x: TensorLike, dims: Matrices) -> bool:
    """Whether every row of an array does."""
    strides = dims.batch_stride | dims.head_stride | dims.row_stride
    return (x.gpu_address | strides * x.dtype.itemsize) % 16 == 0


def check_scale(softmax_scale: float | None, head_dim: int) -> float:
    """The factor of the scores, 1 / sqrt(head_dim) by default. Raises InvalidArgument."""
    if softmax_scale is None:
        return float(head_dim**-0.5)
    try:
        scale = float(softmax_scale) if hasattr(softmax_scale, "__float__") else math.nan  # float() would take a string
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    smallest, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not smallest <= scale <= largest:
        raise InvalidArgument(
            f"softmax_scale={softmax_scale!r}; allowed: positive, finite, within float32's normal range"
        )
    return scale


def check_flag(value: object, name: str) -> bool:
    """`value` as a bool. Raises InvalidArgument for anything but True and False."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgument(f"{name}={value!r}; allowed: True, False")
    return bool(value)


def check_heads(num_heads: int, num_heads_kv: int) -> None:
    """Raise InvalidArgument unless every key/value head serves the same number of query heads."""
    if num_heads % num_heads_kv:
        raise InvalidArgument(
            f"q has {num_heads} heads and k has {num_heads_kv}; allowed: a multiple of the key/value heads"
        )


def check_head_dim(head_dim: int, name: str) -> None:
    """Raise InvalidArgument unless `head_dim` is a multiple of 8."""
    if head_dim % 8:
        raise InvalidArgument(f"{name} has head_dim {head_dim}; allowed: multiples of 8")


def check_same(name: str, what: str, found: object, other: str, wanted: object) -> None:
    """Raise InvalidArgument unless `found` is `wanted`."""
    if found != wanted:
        raise InvalidArgument(f"{name} has {what} {found}, {other} has {wanted}; they must be equal")


def check_output(out: TensorLike, shape: tuple[int, ...], dtype: DType, inputs: Sequence[TensorLike]) -> None:
    """Raise InvalidArgument unless `out` can be written while the inputs are read."""
    if out.shape != shape:
        raise InvalidArgument(f"{out.name} has shape {out.shape}; allowed: {shape}")
    if out.dtype.name != dtype.numpy_name or not out.dtype.isnative:
        raise InvalidArgument(f"{out.name} has dtype {out.dtype}; allowed: {dtype.numpy_name}")
    if not out.writeable:
        raise InvalidArgument(f"{out.name} is read-only; allowed: an array that can be written")
    extent = 1  # elements that the dimensions of smaller strides span
    for stride, n in sorted((s, n) for s, n in zip(out.strides, out.shape) if n > 1):
        if stride < extent:
            raise InvalidArgument(
                f"{out.name} with shape {out.shape} and strides {out.strides} overlaps itself; "
                "allowed: every element at an address of its own"
            )
        extent = stride * (n - 1) + extent
    for x in inputs:
        if out.span[0] < x.span[1] and x.span[0] < out.span[1]:
            raise InvalidArgument(
                f"{out.name} (bytes {out.span[0]:#x} to {out.span[1]:#x}) overlaps "
                f"{x.name} ({x.span[0]:#x} to {x.span[1]:#x}); allowed: memory of its own"
            )


def make_problem(
    q: TensorLike,
    k: TensorLike,
    v: TensorLike,
    out: TensorLike,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    layout: str = "bshd",
    return_lse: bool = False,
    batch_invariant: bool = False,
) -> Problem:
    """The problem that array arguments pose.

    Parameters
    ----------
    q, out : TensorLike
        [batch, seqlen_q, num_heads, head_dim] for layout "bshd", [batch, num_heads, seqlen_q, head_dim] for "bhsd";
        float16 or bfloat16, last dimension contiguous.
    k, v : TensorLike
        The same with seqlen_k and num_heads_kv, a divisor of num_heads.
    softmax_scale, causal, layout, return_lse, batch_invariant
        As in :func:`flashcore_drv.attention`.

    Raises
    ------
    InvalidArgument
        Naming the argument, its value and what is allowed.
    """
    check_layout(layout)
    dtype = dtype_of(q.dtype, q.name, (F16, BF16))
    dims = {}
    for x in (q, k, v):
        dims[x.name] = matrices(x, layout, empty=True)
        check_same(x.name, "dtype", x.dtype, q.name, q.dtype)
        check_same(x.name, "batch", dims[x.name].batch, q.name, dims[q.name].batch)
        check_same(x.name, "head_dim", dims[x.name].cols, q.name, dims[q.name].cols)
    check_head_dim(dims[q.name].cols, q.name)
    check_same(v.name, "num_heads_kv", dims[v.name].heads, k.name, dims[k.name].heads)
    check_same(v.name, "seqlen_k", dims[v.name].rows, k.name, dims[k.name].rows)
    check_heads(dims[q.name].heads, dims[k.name].heads)
    check_output(out, q.shape, dtype, (q, k, v))
    o = matrices(out, layout, empty=True)
    return Problem(
        dims[q.name],
        dims[k.name],
        dims[v.name],
        o,
        dtype,
        check_scale(softmax_scale, dims[q.name].cols),
        check_flag(causal, "causal"),
        check_flag(return_lse, "return_lse"),
        all(starts_on_16_bytes(*x) for x in ((q, dims[q.name]), (k, dims[k.name]), (v, dims[v.name]), (out, o))),
        check_flag(batch_invariant, "batch_invariant"),
    )
