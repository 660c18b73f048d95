"""What array arguments must be, whatever the operation: shapes, strides, alignment, agreement. No CUDA here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .dtypes import DType
from .errors import InvalidArgument
from .problem import MAX_EXTENT, MAX_SEQLEN, Matrices

LAYOUTS = ("bshd", "bhsd")


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


class SideInput(TensorLike, Protocol):
    """A small input beside q, k and v."""

    @property
    def host_values(self) -> npt.NDArray[Any] | None:
        """The elements, where they can be read without waiting for a GPU."""


def check_layout(layout: str) -> None:
    """Raise InvalidArgument unless `layout` is known."""
    if layout not in LAYOUTS:
        raise InvalidArgument(f"layout={layout!r}; allowed: {', '.join(map(repr, LAYOUTS))}")


def check_memory(x: TensorLike) -> list[int]:
    """The strides of an array of any rank, 0 along dimensions of 1. Raises InvalidArgument where kernels cannot go."""
    strides = [0 if n <= 1 else s for n, s in zip(x.shape, x.strides)]
    if any(s < 0 for s in strides):
        raise InvalidArgument(f"{x.name} has strides {x.strides} (elements); allowed: none below 0")
    if x.address % x.dtype.itemsize:
        raise InvalidArgument(f"{x.name} is at {x.address:#x}; allowed: a multiple of {x.dtype.itemsize}")
    if x.span[1] >= 1 << 63:
        raise InvalidArgument(f"{x.name} with strides {x.strides} reaches past the last address of 63 bits")
    return strides


def matrices(x: TensorLike, layout: str = "bhsd", empty: bool = False) -> Matrices:
    """The dimensions of an array argument in this layout; with `empty` there may be no rows. Raises InvalidArgument."""
    if len(x.shape) != 4:
        raise InvalidArgument(f"{x.name} has shape {x.shape}, {len(x.shape)} dimensions; allowed: 4 ({layout})")
    order = (0, 2, 1, 3) if layout == "bshd" else (0, 1, 2, 3)
    strides = _rows_of_columns(x, order[2], empty)
    batch, heads, rows, cols = (x.shape[i] for i in order)
    if rows > MAX_SEQLEN:
        raise InvalidArgument(f"{x.name} has a sequence length of {rows}; allowed: up to {MAX_SEQLEN}")
    return Matrices(batch, heads, rows, cols, *(strides[i] for i in order[:3]))


def packed_matrices(x: TensorLike, batch: int, max_seqlen: int) -> Matrices:
    """The dimensions of `batch` sequences [total, heads, cols] of up to `max_seqlen` rows. Raises InvalidArgument."""
    if len(x.shape) != 3:
        raise InvalidArgument(
            f"{x.name} has shape {x.shape}, {len(x.shape)} dimensions; "
            "allowed: 3 (rows of all sequences, heads, head_dim)"
        )
    row_stride, head_stride, _ = _rows_of_columns(x, 0, empty=True)
    total, heads, cols = x.shape
    return Matrices(batch, heads, min(max_seqlen, total), cols, 0, head_stride, row_stride)


def _rows_of_columns(x: TensorLike, row_axis: int, empty: bool) -> list[int]:
    """The strides, 0 along dimensions of 1, of an array whose last dimension is contiguous."""
    if 0 in x.shape and not (empty and x.shape[row_axis] == 0 and x.shape.count(0) == 1):
        length = ", a sequence length 0 or more" if empty else ""
        raise InvalidArgument(f"{x.name} has shape {x.shape}; allowed: every dimension at least 1{length}")
    if x.shape[-1] > 1 and x.strides[-1] != 1:
        raise InvalidArgument(f"{x.name} has strides {x.strides} (elements); allowed: a last stride of 1")
    if max(x.shape) >= MAX_EXTENT:
        raise InvalidArgument(f"{x.name} has shape {x.shape}; allowed: fewer than {MAX_EXTENT} along a dimension")
    return check_memory(x)


def starts_on_16_bytes(x: TensorLike, dims: Matrices) -> bool:
    """Whether every row of an array does."""
    strides = dims.batch_stride | dims.head_stride | dims.row_stride
    return (x.gpu_address | strides * x.dtype.itemsize) % 16 == 0


def check_contiguous(x: TensorLike, dtype: type[np.generic], shapes: Iterable[tuple[int, ...]]) -> None:
    """Raise InvalidArgument unless `x` is a C-contiguous array of this dtype and one of these shapes."""
    if x.dtype != dtype or not x.dtype.isnative:
        raise InvalidArgument(f"{x.name} has dtype {x.dtype}; allowed: {np.dtype(dtype)}")
    allowed = tuple(shapes)
    if x.shape not in allowed:
        raise InvalidArgument(f"{x.name} has shape {x.shape}; allowed: {' or '.join(map(str, allowed))}")
    step = 1
    for n, stride in zip(reversed(x.shape), reversed(check_memory(x))):
        if n > 1 and stride != step:
            raise InvalidArgument(f"{x.name} has strides {x.strides} (elements); allowed: C-contiguous")
        step *= n


def check_flag(value: object, name: str) -> bool:
    """`value` as a bool. Raises InvalidArgument for anything but True and False."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgument(f"{name}={value!r}; allowed: True, False")
    return bool(value)


def check_count(value: object, name: str, largest: int) -> int:
    """`value` as an int from 0 to `largest`. Raises InvalidArgument."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value <= largest:
        return int(value)
    raise InvalidArgument(f"{name}={value!r}; allowed: a whole number from 0 to {largest}")


def check_number(value: object) -> float:
    """`value` as a float, NaN for what is no number."""
    try:
        return float(value) if hasattr(value, "__float__") else math.nan  # float() would take a string
    except (TypeError, ValueError, OverflowError):
        return math.nan


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


def check_output(out: TensorLike, shape: tuple[int, ...], dtype: DType, inputs: Iterable[TensorLike]) -> None:
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
