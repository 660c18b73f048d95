"""Attention in NumPy: the float64 truth, the same maths at the kernels' precision, and the error that this allows.

Arrays are [batch, heads, rows, cols]. An output is accepted if

    err(out, truth) <= 2 · err(same maths at the kernels' precision, truth) + one ulp of the output

with err the largest absolute difference, and NaN and infinity in the same positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .dtypes import DType

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stages:
    """The results of every stage: scores S, probabilities P, output O, and log sum exp of the scores."""

    s: Array
    p: Array
    o: Array
    lse: Array


def expand_heads(x: Array, num_heads: int) -> Array:
    """[batch, num_heads_kv, rows, cols] to [batch, num_heads, rows, cols]."""
    return np.repeat(x, num_heads // x.shape[1], axis=1)


def visible(seqlen_q: int, seqlen_k: int, causal: bool) -> npt.NDArray[np.bool_]:
    """Which keys a query sees, [seqlen_q, seqlen_k]."""
    return np.tri(seqlen_q, seqlen_k, seqlen_k - seqlen_q, dtype=bool) | (not causal)


def softmax(s: Array, causal: bool) -> tuple[Array, Array]:
    """(P, lse) in the precision of s; zeros and -inf for a row with nothing to attend to."""
    s = np.where(visible(s.shape[-2], s.shape[-1], causal), s, -np.inf)
    m = s.max(-1, keepdims=True, initial=-np.inf)
    m = np.where(m == -np.inf, 0, m).astype(s.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.exp(s - m)
        total = p.sum(-1, keepdims=True)
        return p / np.where(total == 0, 1, total), (m + np.log(total))[..., 0]


def truth(q: Array, k: Array, v: Array, softmax_scale: float, causal: bool) -> Stages:
    """Every stage in float64 from the inputs as they are."""
    q, k, v = (x.astype(np.float64) for x in (q, expand_heads(k, q.shape[1]), expand_heads(v, q.shape[1])))
    with np.errstate(invalid="ignore"):
        s = q @ k.swapaxes(-1, -2) * softmax_scale
        p, lse = softmax(s, causal)
        return Stages(s, p, p @ v, lse)


def qk_rounded(q: Array, k: Array, softmax_scale: float) -> Array:
    """S in float32: products added in the order of head_dim, each sum cut to 24 bits, as tensor cores do it."""
    k = expand_heads(k, q.shape[1]).astype(np.float64)
    s = np.zeros((*q.shape[:3], k.shape[2]))
    keep = ~np.uint64((1 << 29) - 1)  # of float64's 52 mantissa bits, float32's 23
    with np.errstate(invalid="ignore", over="ignore"):
        for d in range(q.shape[3]):
            s += q[..., d, None].astype(np.float64) * k[:, :, None, :, d]
            bits = s.view(np.uint64)
            np.bitwise_and(bits, keep, out=bits, where=np.isfinite(s))
        scaled: Array = s.astype(np.float32) * np.float32(softmax_scale)
    return scaled


def softmax_rounded(s: Array, dtype: DType, causal: bool) -> tuple[Array, Array]:
    """(P, lse) in float32, P rounded to `dtype`."""
    p, lse = softmax(s.astype(np.float32), causal)
    return p.astype(dtype.to_numpy()), lse


def pv_rounded(p: Array, v: Array) -> Array:
    """O accumulated in float32, rounded to the dtype of p."""
    with np.errstate(invalid="ignore", over="ignore"):
        return (p.astype(np.float32) @ expand_heads(v, p.shape[1]).astype(np.float32)).astype(p.dtype)


def same_maths(q: Array, k: Array, v: Array, dtype: DType, softmax_scale: float, causal: bool) -> Stages:
    """Every stage at the kernels' precision: S float32, P and O `dtype`."""
    s = qk_rounded(q, k, softmax_scale)
    p, lse = softmax_rounded(s, dtype, causal)
    return Stages(s, p, pv_rounded(p, v), lse)


@dataclass(frozen=True)
class Verdict:
    """The largest error of an output, what is allowed, and whether it is accepted."""

    error: float
    allowed: float
    misplaced: int  # elements that are NaN or infinite in one and not, or differently so, in the other

    @property
    def ok(self) -> bool:
        """Whether the output is accepted."""
        return self.error <= self.allowed and not self.misplaced


class Judge:
    """Compares an output with the truth, part by part.

    Parameters
    ----------
    mantissa_bits : int
        Of the output's type: one ulp at the largest finite element is allowed on top of twice the same maths' error.
    """

    def __init__(self, mantissa_bits: int) -> None:
        self._mantissa_bits = mantissa_bits
        self._error = self._same_error = self._largest = 0.0
        self._misplaced = 0

    def add(self, out: Array, true: Array, same: Array) -> Judge:
        """Compare a part: the output, the float64 truth, and the same maths at the kernels' precision, of one shape."""
        out, same = out.astype(np.float64), same.astype(np.float64)
        # what overflows in the same maths must overflow in the kernel, though the truth has a wider range
        special = ~np.isfinite(same)
        with np.errstate(invalid="ignore"):
            misplaced = (special | ~np.isfinite(out)) & ~((out == same) | (np.isnan(out) & np.isnan(same)))
        self._misplaced += int(misplaced.sum())
        finite = ~special & np.isfinite(out)
        if finite.any():
            out, same, true = out[finite], same[finite], true[finite]
            self._error = max(self._error, float(np.abs(out - true).max()))
            self._same_error = max(self._same_error, float(np.abs(same - true).max()))
            self._largest = max(self._largest, float(np.abs(true).max()))
        return self

    @property
    def verdict(self) -> Verdict:
        """On everything that was added."""
        ulp = 2.0 ** (math.floor(math.log2(self._largest)) - self._mantissa_bits) if self._largest else 0.0
        return Verdict(self._error, 2 * self._same_error + ulp, self._misplaced)


def judge(out: Array, true: Array, same: Array, mantissa_bits: int) -> Verdict:
    """The verdict on a whole output, see :class:`Judge`."""
    return Judge(mantissa_bits).add(out, true, same).verdict
