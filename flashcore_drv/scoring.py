"""The options that change scores, hide keys or say how many there are: what each may be. No CUDA here.

Sources: windows as in FlashAttention-2 (arXiv:2307.08691), ALiBi (arXiv:2108.12409), softcap (Gemma 2,
arXiv:2408.00118), sinks (arXiv:2309.17453; as a logit a head: gpt-oss, arXiv:2508.10925).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .arguments import SideInput, check_contiguous, check_count, check_memory, check_number, check_same
from .dtypes import BF16, F16, F32, dtype_of
from .errors import InvalidArgument
from .problem import MAX_SEQLEN, UNBOUNDED, Bias, Matrices

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def check_scale(softmax_scale: float | None, head_dim: int) -> float:
    """The factor of the scores, 1 / sqrt(head_dim) by default. Raises InvalidArgument."""
    if softmax_scale is None:
        return float(head_dim**-0.5)
    scale = check_number(softmax_scale)
    if not _SMALLEST <= scale <= _LARGEST:
        raise InvalidArgument(
            f"softmax_scale={softmax_scale!r}; allowed: positive, finite, within float32's normal range"
        )
    return scale


def check_softcap(softcap: float, softmax_scale: float) -> float:
    """The bound of the scores, 0 for none. Raises InvalidArgument."""
    cap = check_number(softcap)
    if cap == 0:
        return 0.0
    if not _SMALLEST <= cap <= _LARGEST:
        raise InvalidArgument(f"softcap={softcap!r}; allowed: 0 (none), or positive within float32's normal range")
    if not _SMALLEST <= softmax_scale / cap <= _LARGEST:
        raise InvalidArgument(
            f"softcap={softcap!r} with softmax_scale={softmax_scale!r}: their quotient {softmax_scale / cap!r} "
            "multiplies the products; allowed: within float32's normal range"
        )
    return cap


def check_window(causal: bool, window_size: Any) -> tuple[int, int]:
    """(window_left, window_right), each a number of keys or UNBOUNDED. Raises InvalidArgument."""
    if window_size is None:
        return UNBOUNDED, 0 if causal else UNBOUNDED
    try:
        left, right = (_window_side(x) for x in window_size)
    except (TypeError, ValueError):
        raise InvalidArgument(
            f"window_size={window_size!r}; allowed: None, or (left, right), each a number of keys from 0, "
            "or -1 or None for all"
        ) from None
    if not causal:
        return left, right
    if 0 < right < UNBOUNDED:
        raise InvalidArgument(
            f"window_size={window_size!r} with causal=True: causal hides every key after the query's place, "
            f"the window shows {right}; allowed with causal: a right side of 0, -1 or None"
        )
    return left, 0


def _window_side(value: Any) -> int:
    if value is None:
        return UNBOUNDED
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < -1:
        raise ValueError
    return UNBOUNDED if value == -1 else min(int(value), UNBOUNDED)


def check_slopes(x: SideInput, batch: int, num_heads: int) -> int:
    """Elements between the slopes of two sequences. Raises InvalidArgument."""
    check_contiguous(x, np.float32, ((num_heads,), (batch, num_heads)))
    if x.host_values is not None and not np.isfinite(x.host_values).all():
        raise InvalidArgument(f"{x.name} has {_first(x.host_values, ~np.isfinite(x.host_values))}; allowed: finite")
    return 0 if len(x.shape) == 1 else num_heads


def check_sinks(x: SideInput, num_heads: int) -> None:
    """Raise InvalidArgument unless `x` is a logit a head; -inf is none."""
    check_contiguous(x, np.float32, ((num_heads,),))
    if x.host_values is not None and not (x.host_values < np.inf).all():
        raise InvalidArgument(f"{x.name} has {_first(x.host_values, ~(x.host_values < np.inf))}; allowed: below inf")


def check_bias(x: SideInput, shape: tuple[int, int, int, int]) -> Bias:
    """A bias of scores [batch, num_heads, seqlen_q, seqlen_k]. Raises InvalidArgument."""
    dtype = dtype_of(x.dtype, x.name, (F16, BF16, F32))
    if len(x.shape) != 4 or any(n not in (1, wanted) for n, wanted in zip(x.shape, shape)):
        raise InvalidArgument(
            f"{x.name} has shape {x.shape}; allowed: {shape} (batch, num_heads, seqlen_q, seqlen_k), "
            "or 1 in place of any of them"
        )
    *strides, col_stride = check_memory(x)
    if col_stride > 1:
        raise InvalidArgument(f"{x.name} has strides {x.strides} (elements); allowed: a last stride of 1 or 0")
    return Bias(dtype, Matrices(*shape, *strides), col_stride)


def check_seqused(x: SideInput, batch: int, seqlen_k: int, lengths: npt.NDArray[Any] | None) -> None:
    """Raise InvalidArgument unless `x` has a number of keys for every sequence.

    Parameters
    ----------
    x : SideInput
        int32 [batch].
    batch, seqlen_k : int
        Sequences; keys of the longest.
    lengths : numpy.ndarray or None
        Keys of each sequence, if they are known and differ.
    """
    check_contiguous(x, np.int32, ((batch,),))
    if x.host_values is None:
        return
    largest = seqlen_k if lengths is None else lengths
    wrong = (x.host_values < 0) | (x.host_values > largest)
    if wrong.any():
        b = int(wrong.argmax())
        most = seqlen_k if lengths is None else int(lengths[b])
        raise InvalidArgument(f"{x.name}[{b}] is {x.host_values[b]}; allowed: 0 to {most}, the keys there are")


def check_cu_seqlens(q: SideInput, k: SideInput) -> int:
    """The batch of two arrays int32 [batch + 1] of where each packed sequence begins. Raises InvalidArgument."""
    for x in (q, k):
        if len(x.shape) != 1 or x.shape[0] < 2:
            raise InvalidArgument(f"{x.name} has shape {x.shape}; allowed: (batch + 1,), of a batch of at least 1")
        check_contiguous(x, np.int32, (x.shape,))
    check_same(k.name, "batch", k.shape[0] - 1, q.name, q.shape[0] - 1)
    return q.shape[0] - 1


def packed_lengths(x: SideInput, total: int, max_seqlen: int) -> npt.NDArray[Any] | None:
    """The length of each packed sequence; None where only the GPU knows. Raises InvalidArgument.

    Parameters
    ----------
    x : SideInput
        cu_seqlens_q or cu_seqlens_k, with the end of the last sequence.
    total : int
        Rows of the packed array.
    max_seqlen : int
        Rows of the longest sequence.
    """
    if x.host_values is None:
        return None
    if x.host_values[0] != 0:
        raise InvalidArgument(f"{x.name} begins with {x.host_values[0]}; allowed: 0")
    lengths: npt.NDArray[Any] = np.diff(x.host_values.astype(np.int64))
    wrong = (lengths < 0) | (lengths > max_seqlen)
    if wrong.any():
        b = int(wrong.argmax())
        raise InvalidArgument(
            f"{x.name} gives sequence {b} the length {lengths[b]}; allowed: 0 to {max_seqlen}, max_seqlen_{x.name[-1]}"
        )
    if x.host_values[-1] > total:
        raise InvalidArgument(f"{x.name} ends with {x.host_values[-1]}; allowed: up to {total}, the rows there are")
    return lengths


def check_max_seqlens(max_seqlen_q: int, max_seqlen_k: int) -> tuple[int, int]:
    """Both as int. Raises InvalidArgument."""
    return (
        check_count(max_seqlen_q, "max_seqlen_q", MAX_SEQLEN),
        check_count(max_seqlen_k, "max_seqlen_k", MAX_SEQLEN),
    )


def _first(values: npt.NDArray[Any], where: npt.NDArray[np.bool_]) -> str:
    """The first wrong element, and its place."""
    return f"{values[where][0]} at {tuple(int(i) for i in np.argwhere(where)[0])}"
