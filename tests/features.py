"""Random attention problems over every feature, their arrays in poisoned memory, and what the results must be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import AWKWARD, Placed, Storage, aligned_storages, storages
from support import start_emulator

import flashcore_drv as fc
from flashcore_drv import catalog, reference
from flashcore_drv.dtypes import BF16, F16, F32, DType
from flashcore_drv.reference import Scoring
from flashcore_drv.runtime import Device, DeviceArray, driver, is_emulated

IMPL = os.environ.get("FEATURE_IMPL", "flash")
"""Whose kernels the features are tested with, where a GPU has more than one family (scripts/gpu_check.sh)."""

Window = tuple[int | None, int | None]


@dataclass(frozen=True)
class BiasCase:
    """A bias: its type, where it is broadcast (by strides of 0, or by dimensions of 1), how it lies, what it hides."""

    dtype: DType
    broadcast: tuple[bool, bool, bool, bool]
    by_strides: bool
    storage: Storage
    hidden: float


@dataclass(frozen=True)
class FeatureCase:
    """A problem with features. `lengths` are those of each sequence: all alike, or packed."""

    lengths: tuple[tuple[int, int], ...]
    packed: bool
    spare: tuple[int, int]  # rows after the last packed sequence
    num_heads_kv: int
    group: int
    head_dim: int
    head_dim_v: int
    dtype: DType
    softmax_scale: float | None
    causal: bool
    window_size: Window
    softcap: float
    alibi: str | None
    bias: BiasCase | None
    sinks: bool
    seqused_k: bool
    sides_on_host: bool
    layout: str
    batch_invariant: bool
    storage: tuple[Storage, ...]
    seed: int
    mean: float
    outliers: bool

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def num_heads(self) -> int:
        return self.num_heads_kv * self.group

    @property
    def longest(self) -> tuple[int, int]:
        return max(n for n, _ in self.lengths), max(n for _, n in self.lengths)

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 if self.softmax_scale is None else self.softmax_scale

    @property
    def starts(self) -> tuple[Any, Any]:
        """cu_seqlens_q and cu_seqlens_k."""
        return tuple(np.cumsum([0, *(n[side] for n in self.lengths)]).astype(np.int32) for side in range(2))

    def shape(self, name: str) -> tuple[int, int, int, int]:
        """[batch, heads, rows, cols] of q, k, v or o; all packed sequences are one batch."""
        side = "qo".find(name) < 0
        heads = self.num_heads_kv if side else self.num_heads
        cols = self.head_dim if name in "qk" else self.head_dim_v
        if self.packed:
            return 1, heads, int(self.starts[side][-1]) + self.spare[side], cols
        return self.batch, heads, self.longest[side], cols


class Made:
    """The arrays of a case: on the host for the reference, on the GPU amid poison for the kernels."""

    def __init__(self, case: FeatureCase) -> None:
        self.case, self.rng = case, np.random.default_rng(case.seed)
        self.used = self._used()
        self.scoring = Scoring(
            case.window_size,
            case.softcap,
            alibi_slopes=self._slopes(),
            bias=None if case.bias is None else self._bias(case.bias),
            sinks=self._normal((case.num_heads,), 2) if case.sinks else None,
            seqused_k=self.used if case.seqused_k else None,
        )
        self.values = {name: self._values(name) for name in "qkv"}
        kind = case.dtype.to_numpy()
        self.inputs = {n: Placed(case.shape(n), kind, x, self.values[n]) for n, x in zip("qkv", case.storage)}
        self.sides = self.arguments()

    def _normal(self, shape: tuple[int, ...], size: float = 1) -> Any:
        return np.float32(size) * self.rng.standard_normal(shape, np.float32)

    def _used(self) -> Any:
        """Keys of each sequence."""
        there = np.array([n for _, n in self.case.lengths], np.int32)
        if not self.case.seqused_k:
            return there
        return np.where(self.rng.random(there.shape) < 0.3, there, self.rng.integers(0, there + 1)).astype(np.int32)

    def _values(self, name: str) -> Any:
        """Random q, k or v, their means not zero; NaN in the rows that belong to no sequence."""
        case = self.case
        x = self._normal(case.shape(name)) + case.mean * self._normal((1, 1, 1, case.shape(name)[3]))
        if case.outliers and x.size:
            x.reshape(-1)[self.rng.integers(0, x.size, 3)] = self.rng.choice(np.array([-30, 30], np.float32), 3)
        lengths = self.used if name in "kv" else np.array([n for n, _ in case.lengths])
        read = np.zeros((x.shape[0], x.shape[2]), bool)
        for b, n in enumerate(lengths):
            start = case.starts[name in "kv"][b] if case.packed else 0
            read[0 if case.packed else b, start : start + n] = True
        return np.where(read[:, None, :, None], x, np.nan).astype(case.dtype.to_numpy())

    def _slopes(self) -> Any:
        """As in the paper, powers of 2; some negative ones."""
        if self.case.alibi is None:
            return None
        shape = (self.case.num_heads,) if self.case.alibi == "heads" else (self.case.batch, self.case.num_heads)
        slopes = 2.0 ** -self.rng.integers(1, 9, shape) * self.rng.choice([1, 1, 1, -0.25], shape)
        return slopes.astype(np.float32)

    def _bias(self, bias: BiasCase) -> Any:
        """Random, here and there -inf, and NaN where no query sees a key."""
        case = self.case
        whole = case.batch, case.num_heads, *case.longest
        shape = tuple(1 if once else n for once, n in zip(bias.broadcast, whole))
        values = self._normal(shape, 2)
        values[self.rng.random(shape) < bias.hidden] = -np.inf
        seen = np.zeros(whole, bool)
        for b, n in enumerate(self.used):
            seen[b, :, :, :n] = reference.visible(whole[2], n, case.causal, case.window_size)
        for axis, once in enumerate(bias.broadcast):
            seen = seen.any(axis, keepdims=True) if once else seen
        return np.where(seen, values, np.nan).astype(bias.dtype.to_numpy())

    def arguments(self) -> dict[str, Any]:
        """The small inputs as arguments."""
        case, scoring = self.case, self.scoring
        found = {name: getattr(scoring, name) for name in ("alibi_slopes", "bias", "sinks", "seqused_k")}
        if case.packed:
            found |= dict(zip(("cu_seqlens_q", "cu_seqlens_k"), case.starts))
        found = {name: x for name, x in found.items() if x is not None}
        if case.sides_on_host:
            return found
        on_gpu = {name: guarded(x) for name, x in found.items() if name != "bias"}
        if case.bias:
            placed = Placed(scoring.bias.shape, scoring.bias.dtype, case.bias.storage, scoring.bias)
            whole = case.batch, case.num_heads, *case.longest
            on_gpu["bias"] = placed.broadcast(whole) if case.bias.by_strides else placed.array
        return on_gpu

    def new_output(self) -> Placed:
        return Placed(self.case.shape("o"), self.case.dtype.to_numpy(), self.case.storage[3])

    @property
    def end(self) -> int:
        """The rows of q and o after it belong to no sequence."""
        return int(self.case.starts[0][-1]) if self.case.packed else self.case.longest[0]

    def compute(self, out: Placed, read_lse: bool = True, **changes: Any) -> Any:
        """lse, [batch, num_heads, seqlen_q] or, up to `end`, [num_heads, total_q]; `changes` are other arguments."""
        try:
            lse = self._compute(out, changes)
            Device.current().synchronize()
            if not read_lse:
                return None
            if not self.case.packed:
                return lse.to_numpy()
            heads, total = lse.shape
            return np.stack([lse.as_strided((self.end,), (1,), h * total).to_numpy() for h in range(heads)])
        except fc.DriverError as error:
            if not is_emulated():
                raise
            finding = driver.module().last_error()
            start_emulator()  # else every later example would fail, too
            raise AssertionError(str(finding or error)) from error

    def _compute(self, out: Placed, changes: dict[str, Any]) -> DeviceArray:
        case = self.case
        options: dict[str, Any] = {
            "softmax_scale": case.softmax_scale, "causal": case.causal, "window_size": case.window_size,
            "softcap": case.softcap, "batch_invariant": case.batch_invariant, "return_lse": True, "impl": IMPL,
        } | self.sides | changes  # fmt: skip
        if case.packed:
            arrays = [self.inputs[n].packed() for n in "qkv"]
            names = ("cu_seqlens_q", "cu_seqlens_k")
            starts = [options.pop(name) for name in names]
            _, lse = fc.attention_varlen(*arrays, *starts, *case.longest, out=out.packed(), **options)
        else:
            arrays = [in_layout(x, case.layout) for x in (*self.inputs.values(), out)]
            *inputs, room = arrays
            _, lse = fc.attention(*inputs, out=room, layout=case.layout, **options)
        return lse

    def expected(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """(O, lse) in float64 and at the kernels' precision, in the shapes of the case."""
        case = self.case

        def true(q: Any, k: Any, v: Any, scoring: Scoring) -> reference.Stages:
            return reference.truth(q, k, v, case.scale, case.causal, scoring)

        def same(q: Any, k: Any, v: Any, scoring: Scoring) -> reference.Stages:
            return reference.same_maths(q, k, v, case.dtype, case.scale, case.causal, scoring)

        arrays = [self.values[n] for n in "qkv"]
        if not case.packed:
            both = [stages(*arrays, self.scoring) for stages in (true, same)]
            return (both[0].o, both[0].lse), (both[1].o, both[1].lse)
        flat = [x[0].swapaxes(0, 1) for x in arrays]
        both = [reference.of_packed(stages, *flat, *case.starts, self.scoring) for stages in (true, same)]
        (true_o, true_lse), (same_o, same_lse) = both
        return (true_o.swapaxes(0, 1)[None], true_lse), (same_o.swapaxes(0, 1)[None], same_lse)


def in_layout(x: Placed, layout: str) -> DeviceArray:
    """An array [batch, heads, rows, cols] as an argument."""
    if layout == "bhsd":
        return x.array
    (b, h, s, d), (b_stride, h_stride, s_stride, d_stride) = x.array.shape, x.array.strides
    return x.array.as_strided((b, s, h, d), (b_stride, s_stride, h_stride, d_stride))


def guarded(values: Any) -> DeviceArray:
    """A contiguous array on the GPU with ones in all bits on both sides."""
    poison = np.full(values.itemsize, 0xFF, np.uint8).view(values.dtype)
    whole = DeviceArray.from_numpy(np.concatenate([poison, values.reshape(-1), poison]))
    strides = tuple(s // values.itemsize for s in np.ascontiguousarray(values).strides)
    return whole.as_strided(values.shape, strides, 1)


def assert_close(out: Any, true: Any, same: Any, dtype: DType) -> None:
    verdict = reference.judge(out, true, same, dtype.mantissa_bits)
    assert verdict.ok, verdict


def check(case: FeatureCase) -> None:
    """Results are right, nothing else is written, and a second run gives the same bits."""
    made = Made(case)
    out = made.new_output()
    lse = made.compute(out)
    found = out.read()
    (true_o, true_lse), (same_o, same_lse) = made.expected()
    spare = np.ascontiguousarray(found[:, :, made.end :]).view(np.uint8)
    assert (spare == 0xFF).all(), "rows of no sequence were written"
    end = made.end
    assert_close(found[:, :, :end], true_o[:, :, :end], same_o[:, :, :end], case.dtype)
    assert_close(lse, true_lse[..., :end], same_lse[..., :end], F32)
    again = made.new_output()
    lse_again = made.compute(again)
    assert again.read().tobytes() == found.tobytes(), "two runs differ"
    assert lse_again.tobytes() == lse.tobytes(), "two runs differ in lse"


def most_scores() -> int:
    """Of an example: the emulator takes about a second for it."""
    return 15_000 if is_emulated() else 200_000


@st.composite
def seqlens(draw: Any) -> int:
    if not is_emulated() and draw(st.integers(0, 3)) == 0:
        return draw(st.integers(300, 3000))
    return draw(st.sampled_from((0, *AWKWARD)) | st.integers(0, 200))


sides = st.none() | st.just(-1) | st.sampled_from((0, *AWKWARD)) | st.integers(0, 300)
head_dims = st.sampled_from(catalog.FLASH_HEAD_DIMS) | st.integers(1, 32).map(lambda n: 8 * n)
biases = st.builds(
    BiasCase,
    dtype=st.sampled_from([F16, BF16, F32]),
    broadcast=st.tuples(*[st.booleans()] * 4),
    by_strides=st.booleans(),
    storage=storages,
    hidden=st.sampled_from([0, 0.1, 0.9, 1]),
)


@st.composite
def feature_cases(draw: Any, packed: bool | None = None, **fixed: Any) -> FeatureCase:
    """Cases with every combination of features that makes sense; `fixed` are fields, or how to draw them."""
    is_packed = draw(st.booleans()) if packed is None else packed
    room = most_scores()
    if is_packed:
        lengths = []
        for _ in range(draw(st.integers(1, 4))):
            sq, sk = draw(seqlens()), draw(seqlens())
            lengths.append((min(sq, room // max(sk, 1)), sk))
    else:
        sq, sk = draw(seqlens()), draw(seqlens())
        lengths = [(min(sq, room // max(sk, 1)), sk)]
    scores = sum(max(sq, 16) * max(sk, 16) for sq, sk in lengths)
    num_heads_kv = draw(st.integers(1, max(1, min(3, room // scores))))
    group = draw(st.integers(1, max(1, min(4, room // (scores * num_heads_kv)))))
    if not is_packed:
        lengths *= draw(st.integers(1, max(1, min(3, room // (scores * num_heads_kv * group)))))
    causal = draw(st.booleans())
    left = draw(sides)
    right = draw(st.sampled_from([None, -1, 0]) if causal else sides)
    head_dim = draw(head_dims)
    return FeatureCase(
        **{
            "lengths": tuple(lengths),
            "packed": is_packed,
            "spare": (draw(st.sampled_from([0, 0, 3])), draw(st.sampled_from([0, 0, 5]))),
            "num_heads_kv": num_heads_kv,
            "group": group,
            "head_dim": head_dim,
            "head_dim_v": draw(st.just(head_dim) | head_dims),
            "dtype": draw(st.sampled_from([F16, BF16])),
            "softmax_scale": draw(st.none() | st.floats(0.01, 1.0)),
            "causal": causal,
            "window_size": draw(st.just((None, None)) | st.just((left, right))),
            "softcap": draw(st.just(0.0) | st.sampled_from([0.5, 5.0, 50.0])),
            "alibi": draw(st.sampled_from([None, None, "heads", "batch"])),
            "bias": None if is_packed else draw(st.none() | biases),
            "sinks": draw(st.booleans()),
            "seqused_k": draw(st.booleans()),
            "sides_on_host": draw(st.booleans()),
            "layout": draw(st.sampled_from(["bshd", "bhsd"])),
            "batch_invariant": draw(st.booleans()),
            "storage": draw(st.tuples(*[aligned_storages] * 4) | st.tuples(*[storages] * 4)),
            "seed": draw(st.integers(0, 2**32 - 1)),
            "mean": draw(st.sampled_from([0.0, 0.5, 2.0])),
            "outliers": draw(st.booleans()),
        }
        | {name: draw(x) if isinstance(x, st.SearchStrategy) else x for name, x in fixed.items()}
    )
