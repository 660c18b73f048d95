"""Attention in NumPy: the float64 truth, the same maths at the kernels' precision, and the error that this allows.

Arrays are [batch, heads, rows, cols]. An output is accepted if

    err(out, truth) <= 2 · err(same maths at the kernels' precision, truth) + one ulp of the output

with err the largest absolute difference, and NaN and infinity in the same positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Scoring:
    """What becomes of scores, and which there are; every field as the argument of :func:`flashcore_drv.attention`.

    Attributes
    ----------
    window_size : (int or None, int or None)
        Keys that a query sees before and after its own place; None or -1: all.
    softcap : float
        Bound of the scores, 0 for none.
    alibi_slopes : numpy.ndarray, optional
        [num_heads] or [batch, num_heads]
    bias : numpy.ndarray, optional
        Broadcastable to [batch, num_heads, seqlen_q, seqlen_k].
    sinks : numpy.ndarray, optional
        [num_heads]
    seqused_k : numpy.ndarray, optional
        [batch]: the keys that each sequence has; what is after them is not looked at.
    """

    window_size: tuple[int | None, int | None] = (None, None)
    softcap: float = 0.0
    alibi_slopes: Array | None = None
    bias: Array | None = None
    sinks: Array | None = None
    seqused_k: Array | None = None

    def of_sequence(self, b: int, seqlen_k: int) -> Scoring:
        """That of sequence b, which has `seqlen_k` keys, as a batch of its own."""
        slopes, bias = self.alibi_slopes, self.bias
        if slopes is not None and slopes.ndim == 2:
            slopes = slopes[b]
        if bias is not None:
            bias = bias[b : b + 1] if bias.shape[0] > 1 else bias
            bias = bias[..., :seqlen_k] if bias.shape[3] > 1 else bias
        return replace(self, alibi_slopes=slopes, bias=bias, seqused_k=None)

    def apply(self, s: Array) -> Array:
        """S with softcap, plus bias, less slope · distance, in the precision of s."""
        kind = s.dtype.type
        if self.softcap:
            s = kind(self.softcap) * np.tanh(s / kind(self.softcap))
        if self.bias is not None:
            s = s + self.bias.astype(kind)
        if self.alibi_slopes is not None:
            distance = np.abs(_distance(s.shape[-2], s.shape[-1])).astype(kind)
            s = s - self.alibi_slopes.astype(kind)[..., None, None] * distance
        return s


PLAIN = Scoring()


def expand_heads(x: Array, num_heads: int) -> Array:
    """[batch, num_heads_kv, rows, cols] to [batch, num_heads, rows, cols]."""
    return np.repeat(x, num_heads // x.shape[1], axis=1)


def _distance(seqlen_q: int, seqlen_k: int) -> npt.NDArray[np.int64]:
    """From a query's place among the keys to a key, [seqlen_q, seqlen_k]; the last query is at the last key."""
    found: npt.NDArray[np.int64] = np.arange(seqlen_k) - np.arange(seqlen_k - seqlen_q, seqlen_k)[:, None]
    return found


def visible(
    seqlen_q: int, seqlen_k: int, causal: bool, window_size: tuple[int | None, int | None] = PLAIN.window_size
) -> npt.NDArray[np.bool_]:
    """Which keys a query sees, [seqlen_q, seqlen_k]."""
    left, right = (None if n == -1 else n for n in window_size)
    distance = _distance(seqlen_q, seqlen_k)
    seen = distance <= 0 if causal else np.ones(distance.shape, bool)
    if left is not None:
        seen &= distance >= -left
    if right is not None:
        seen &= distance <= right
    return seen


def softmax(s: Array, causal: bool, scoring: Scoring = PLAIN) -> tuple[Array, Array]:
    """(P, lse) in the precision of s; zeros and -inf for a row with nothing to attend to."""
    s = np.where(visible(s.shape[-2], s.shape[-1], causal, scoring.window_size), s, -np.inf)
    m = s.max(-1, keepdims=True, initial=-np.inf)
    sinks = np.array(-np.inf) if scoring.sinks is None else scoring.sinks[:, None, None]
    m = np.maximum(m, sinks)
    m = np.where(m == -np.inf, 0, m).astype(s.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.exp(s - m)
        total = p.sum(-1, keepdims=True) + np.exp(sinks.astype(s.dtype) - m)
        return p / np.where(total == 0, 1, total), (m + np.log(total))[..., 0]


def truth(q: Array, k: Array, v: Array, softmax_scale: float, causal: bool = False, scoring: Scoring = PLAIN) -> Stages:
    """Every stage in float64 from the inputs as they are."""

    def exact_qk(q: Array, k: Array) -> Array:
        scores: Array = q.astype(np.float64) @ expand_heads(k, q.shape[1]).astype(np.float64).swapaxes(-1, -2)
        return scores * softmax_scale

    def exact_pv(p: Array, v: Array) -> Array:
        o: Array = p @ expand_heads(v, p.shape[1]).astype(np.float64)
        return o

    return _stages(q, k, v, causal, scoring, exact_qk, lambda p: p, exact_pv)


def _stages(
    q: Array,
    k: Array,
    v: Array,
    causal: bool,
    scoring: Scoring,
    qk: Callable[[Array, Array], Array],
    rounded: Callable[[Array], Array],
    pv: Callable[[Array, Array], Array],
) -> Stages:
    """S, P, O and lse by these products, with P in this rounding; keys beyond a sequence's have S = -inf and P = 0."""
    if scoring.seqused_k is None:
        with np.errstate(invalid="ignore", over="ignore"):
            s = scoring.apply(qk(q, k))
            p, lse = softmax(s, causal, scoring)
            p = rounded(p)
            return Stages(s, p, pv(p, v), lse)
    parts = []
    for b, n in enumerate(scoring.seqused_k):
        one = slice(b, b + 1)
        parts.append(_stages(q[one], k[one, :, :n], v[one, :, :n], causal, scoring.of_sequence(b, n), qk, rounded, pv))

    def padded(x: Array, value: float) -> Array:
        room = [(0, 0), (0, 0), (0, 0), (0, k.shape[2] - x.shape[3])]
        return np.pad(x, room, constant_values=np.array(value, x.dtype))

    return Stages(
        np.concatenate([padded(x.s, -np.inf) for x in parts]),
        np.concatenate([padded(x.p, 0) for x in parts]),
        np.concatenate([x.o for x in parts]),
        np.concatenate([x.lse for x in parts]),
    )


def of_packed(
    stages: Callable[[Array, Array, Array, Scoring], Stages],
    q: Array,
    k: Array,
    v: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    scoring: Scoring = PLAIN,
) -> tuple[Array, Array]:
    """(O, lse) of packed sequences, one after the other; zeros where there is no sequence.

    Parameters
    ----------
    stages : function of q, k, v and Scoring
        Computes one sequence, [1, heads, rows, cols]: :func:`truth`, or :func:`same_maths`.
    q, k, v : numpy.ndarray
        [total_q, num_heads, head_dim], [total_k, num_heads_kv, head_dim], [total_k, num_heads_kv, head_dim_v]
    cu_seqlens_q, cu_seqlens_k : numpy.ndarray
        [batch + 1]: where each sequence begins.

    Returns
    -------
    numpy.ndarray, [total_q, num_heads, head_dim_v]
    numpy.ndarray, [num_heads, total_q]
    """
    parts = []
    for b in range(len(cu_seqlens_q) - 1):
        rows, keys = slice(*cu_seqlens_q[b : b + 2]), slice(*cu_seqlens_k[b : b + 2])
        one = [x.swapaxes(0, 1)[None] for x in (q[rows], k[keys], v[keys])]
        if scoring.seqused_k is not None:
            one[1:] = [x[:, :, : scoring.seqused_k[b]] for x in one[1:]]
        parts.append((rows, stages(one[0], one[1], one[2], scoring.of_sequence(b, one[1].shape[2]))))
    kind = parts[0][1]
    o = np.zeros((*q.shape[:2], v.shape[2]), kind.o.dtype)
    lse = np.zeros((q.shape[1], q.shape[0]), kind.lse.dtype)
    for rows, x in parts:
        o[rows], lse[:, rows] = x.o[0].swapaxes(0, 1), x.lse[0]
    return o, lse


def merge(
    out_a: Array, lse_a: Array, out_b: Array, lse_b: Array, precision: type[np.floating[Any]]
) -> tuple[Array, Array]:
    """(O, lse) of attention over two disjoint sets of keys, from those over each, in this precision.

    Parameters
    ----------
    out_a, out_b : numpy.ndarray
        [..., cols]
    lse_a, lse_b : numpy.ndarray
        [...]
    """
    out_a, lse_a, out_b, lse_b = (x.astype(precision) for x in (out_a, lse_a, out_b, lse_b))
    m = np.maximum(lse_a, lse_b)
    m = np.where(m == -np.inf, 0, m).astype(precision)
    with np.errstate(invalid="ignore", divide="ignore"):
        w_a, w_b = np.exp(lse_a - m), np.exp(lse_b - m)
        total = w_a + w_b
        out = w_a[..., None] * out_a + w_b[..., None] * out_b
        return out / np.where(total == 0, 1, total)[..., None], m + np.log(total)


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


def same_maths(
    q: Array, k: Array, v: Array, dtype: DType, softmax_scale: float, causal: bool = False, scoring: Scoring = PLAIN
) -> Stages:
    """Every stage at the kernels' precision: S float32, P and O `dtype`."""
    kind = dtype.to_numpy()
    return _stages(
        q, k, v, causal, scoring, lambda q, k: qk_rounded(q, k, softmax_scale), lambda p: p.astype(kind), pv_rounded
    )


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
