"""Random attention problems whose arrays lie in poisoned device memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flashcore_drv.dtypes import BF16, F16, F32, DType
from flashcore_drv.runtime import DeviceArray

# One more and one less than the sizes of vectors, fragments and tiles, and lengths that are a multiple of nothing.
AWKWARD = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 191, 193, 255, 256, 257, 300)
lengths = st.sampled_from(AWKWARD) | st.integers(1, 300)
MAX_SCORES = 120_000  # batch · heads · seqlen_q · seqlen_k of an example: the emulator takes about a second for it


@dataclass(frozen=True)
class Storage:
    """How a tensor [batch, heads, rows, cols] lies in memory: which index varies slowest, and gaps in elements."""

    order: tuple[int, int, int]
    row_gap: int
    offset: int


@dataclass(frozen=True)
class Case:
    """A problem, how its arrays lie, and what is in them."""

    batch: int
    num_heads_kv: int
    group: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    dtype: DType
    causal: bool
    softmax_scale: float | None
    storage: tuple[Storage, Storage, Storage, Storage]
    seed: int
    mean: float
    outliers: bool

    @property
    def num_heads(self) -> int:
        return self.num_heads_kv * self.group

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 if self.softmax_scale is None else self.softmax_scale

    @property
    def shapes(self) -> dict[str, tuple[int, int, int, int]]:
        q = (self.batch, self.num_heads, self.seqlen_q, self.head_dim)
        kv = (self.batch, self.num_heads_kv, self.seqlen_k, self.head_dim)
        return {"q": q, "k": kv, "v": kv, "o": q}

    def values(self) -> dict[str, Any]:
        """Independent random q, k and v, with means that are not zero and, if wanted, a few large elements."""
        rng = np.random.default_rng(self.seed)
        made = {}
        for name in "qkv":
            x = rng.standard_normal(self.shapes[name], np.float32)
            x += np.float32(self.mean) * rng.standard_normal((1, 1, 1, self.head_dim), np.float32)
            if self.outliers and x.size:
                at = rng.integers(0, x.size, 3)
                x.reshape(-1)[at] = rng.choice(np.array([-30.0, 30.0], np.float32), 3)
            made[name] = x.astype(self.dtype.to_numpy())
        return made


storages = st.builds(
    Storage,
    order=st.sampled_from([(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)]),
    row_gap=st.sampled_from([0, 0, 0, 8, 1, 2, 5]),
    offset=st.sampled_from([0, 0, 0, 8, 1, 3]),
)

aligned_storages = st.builds(
    Storage,
    order=st.sampled_from([(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)]),
    row_gap=st.sampled_from([0, 8, 24]),
    offset=st.sampled_from([0, 8]),
)


def cases_of(lengths: st.SearchStrategy, head_dims: st.SearchStrategy, storage: st.SearchStrategy) -> st.SearchStrategy:
    """Cases with these lengths, head_dims and ways to lie in memory."""
    return st.builds(
        Case,
        batch=st.integers(1, 3),
        num_heads_kv=st.integers(1, 3),
        group=st.sampled_from([1, 1, 2, 3, 4]),
        seqlen_q=lengths,
        seqlen_k=lengths,
        head_dim=head_dims,
        dtype=st.sampled_from([F16, BF16]),
        causal=st.booleans(),
        softmax_scale=st.none() | st.floats(0.01, 1.0),
        storage=storage,
        seed=st.integers(0, 2**32 - 1),
        mean=st.sampled_from([0.0, 0.5, 2.0]),
        outliers=st.booleans(),
    ).filter(lambda c: c.batch * c.num_heads * c.seqlen_q * c.seqlen_k <= MAX_SCORES)


cases = cases_of(
    lengths,
    st.sampled_from([64, 128]) | st.integers(1, 16).map(lambda n: 8 * n),
    st.tuples(storages, storages, storages, storages),
)


class Placed:
    """An array [batch, heads, rows, cols] somewhere in device memory that is NaN (all ones) everywhere else."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], storage: Storage, values: Any = None) -> None:
        step, strides = shape[3] + storage.row_gap, [0, 0, 0, 1]
        for axis in reversed(storage.order):
            strides[axis] = step
            step *= max(shape[axis], 1)
        host = np.full((storage.offset + step + 16) * dtype.itemsize, 0xFF, np.uint8).view(dtype)
        self._offset, self._shape, self._strides = storage.offset, shape, strides
        if values is not None:
            self._of(host)[...] = values
        self.whole = DeviceArray.from_numpy(host)
        self.array = self.whole.as_strided(shape, tuple(strides), storage.offset)

    def packed(self) -> DeviceArray:
        """The array as [rows, heads, cols], of a batch of 1."""
        _, heads, rows, cols = self._shape
        _, head_stride, row_stride, _ = self._strides
        return self.array.as_strided((rows, heads, cols), (row_stride, head_stride, 1))

    def broadcast(self, shape: tuple[int, ...]) -> DeviceArray:
        """The array with strides of 0 where it is 1 and `shape` is not."""
        strides = [0 if n == 1 else s for n, s in zip(self._shape, self._strides)]
        return self.array.as_strided(shape, tuple(strides))

    def _of(self, flat: Any) -> Any:
        """The array in a flat one that has the layout of the whole memory."""
        byte_strides = [s * flat.itemsize for s in self._strides]
        return np.lib.stride_tricks.as_strided(flat[self._offset :], self._shape, byte_strides)

    def read(self) -> Any:
        """The values, after checking that nothing around them was written."""
        flat = self.whole.to_numpy()
        inside = np.zeros(flat.shape, bool)
        self._of(inside)[...] = True
        outside = flat.view(np.uint8).reshape(-1, flat.itemsize)[~inside]
        assert (outside == 0xFF).all(), "memory around the array was written"
        return self._of(flat).copy()


def scores_like(case: Case, storage: Storage, values: Any = None) -> Placed:
    """S of a case, float32."""
    shape = (case.batch, case.num_heads, case.seqlen_q, case.seqlen_k)
    return Placed(shape, np.dtype(F32.numpy_name), storage, values)
