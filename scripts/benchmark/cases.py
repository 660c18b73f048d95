"""Problems that are timed, their tensors on host and GPU, and float64 truth for sampled rows of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashcore_drv import reference
from flashcore_drv.dtypes import F16, DType
from flashcore_drv.runtime import Device, DeviceArray

from .conditions import SEED
from .results import Json

SAMPLED_ROWS = 16  # of a head, at each sampled place
Places = Iterator[tuple[int, int, slice]]


@dataclass(frozen=True)
class Case:
    """An attention problem that is timed: q [batch, num_heads, seqlen_q, head_dim], k and v the same with num_heads_kv.

    With `lengths` it is packed instead: q, k and v [total, heads, head_dim], as many keys as queries in each sequence.
    """

    id: str
    batch: int
    num_heads: int
    num_heads_kv: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    causal: bool = False
    dtype: DType = F16
    lengths: tuple[int, ...] | None = None

    @property
    def softmax_scale(self) -> float:
        """The default of attention()."""
        return float(self.head_dim**-0.5)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of q, k, v and o."""
        q: tuple[int, ...]
        kv: tuple[int, ...]
        if self.lengths is not None:
            total = sum(self.lengths)
            q, kv = ((total, heads, self.head_dim) for heads in (self.num_heads, self.num_heads_kv))
        else:
            q = self.batch, self.num_heads, self.seqlen_q, self.head_dim
            kv = self.batch, self.num_heads_kv, self.seqlen_k, self.head_dim
        return {"q": q, "k": kv, "v": kv, "o": q}

    @property
    def flops(self) -> int:
        """Of both products, of the visible part of the scores; the rest of softmax is not counted."""
        if self.lengths is None:
            sequences = [(self.seqlen_q, self.seqlen_k)] * self.batch
        else:
            sequences = [(n, n) for n in self.lengths]
        scores = sum(_visible(rows, keys) if self.causal else rows * keys for rows, keys in sequences)
        return 4 * self.num_heads * self.head_dim * scores

    @property
    def nbytes(self) -> int:
        """That any implementation must move: q, k and v read once, o written once."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values()) * self.dtype.itemsize

    def to_json(self) -> Json:
        """The member "problem" of a row."""
        return {
            "batch": self.batch,
            "num_heads": self.num_heads,
            "num_heads_kv": self.num_heads_kv,
            "seqlen_q": self.seqlen_q,
            "seqlen_k": self.seqlen_k,
            "head_dim": self.head_dim,
            "dtype": self.dtype.numpy_name,
            "causal": self.causal,
            "layout": "bhsd" if self.lengths is None else "packed",
            "varlen": None if self.lengths is None else list(self.lengths),
        }


def _visible(rows: int, keys: int) -> int:
    """Scores under a mask aligned to the bottom right."""
    seeing = min(rows, keys)
    return seeing * (2 * keys - seeing + 1) // 2


@dataclass
class Tensors:
    """q, k and v of a case, on the host and on the GPU."""

    case: Case
    host: dict[str, Any]
    device: dict[str, DeviceArray]

    def of_head(self, name: str, batch: int, head: int) -> Any:
        """One head of q, k or v on the host, [rows, head_dim]."""
        return head_of(self.case, self.host[name], batch, head)


def head_of(case: Case, x: Any, batch: int, head: int) -> Any:
    """One head of a tensor in the layout of the case, [rows, head_dim]."""
    if case.lengths is None:
        return x[batch, head]
    start = sum(case.lengths[:batch])
    return x[start : start + case.lengths[batch], head]


class Pool:
    """Independent standard normal numbers, on the host and on the GPU, that cases take their tensors from.

    One pool serves every case of a dtype: making 100 million numbers takes longer than timing kernels on them.
    """

    def __init__(self, device: Device, dtype: DType, elements: int) -> None:
        rng = np.random.default_rng(SEED)
        self.host = rng.standard_normal(elements, np.float32).astype(dtype.to_numpy())
        self.device = DeviceArray.from_numpy(self.host, device)

    def tensors(self, case: Case, first: int = 0) -> Tensors:
        """The tensors of a case, one after the other from element `first` on."""
        host, device = {}, {}
        for name in "qkv":
            shape = case.shapes[name]
            count = int(np.prod(shape))
            host[name] = self.host[first : first + count].reshape(shape)
            strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
            device[name] = self.device.as_strided(shape, strides, first)
            first += count
        return Tensors(case, host, device)

    def free(self) -> None:
        """Give the GPU's memory back."""
        self.device.free()


def elements(case: Case) -> int:
    """Of q, k and v."""
    return sum(int(np.prod(case.shapes[name])) for name in "qkv")


def upload(case: Case, host: dict[str, Any], device: Device) -> Tensors:
    """Tensors from host arrays."""
    return Tensors(case, host, {name: DeviceArray.from_numpy(x, device) for name, x in host.items()})


def sampled(case: Case) -> Places:
    """(batch, head, rows) at three places: the first rows of all, some in the middle, the last of all."""
    lengths = case.lengths or (case.seqlen_q,) * case.batch
    for batch, head, where in (
        (0, 0, 0.0),
        (case.batch // 2, case.num_heads // 2, 0.5),
        (case.batch - 1, case.num_heads - 1, 1.0),
    ):
        count = min(SAMPLED_ROWS, lengths[batch])
        first = round(where * (lengths[batch] - count))
        yield batch, head, slice(first, first + count)


def every_row(case: Case) -> Places:
    """(batch, head, rows): all that there are."""
    lengths = case.lengths or (case.seqlen_q,) * case.batch
    for batch, length in enumerate(lengths):
        for head in range(case.num_heads):
            yield batch, head, slice(0, length)


class Truth:
    """Float64 results of some rows, and the same maths at the kernels' precision: what outputs are held to.

    Parameters
    ----------
    tensors : Tensors
        The inputs.
    places : function
        Says which rows of a case: :func:`sampled` or :func:`every_row`.
    """

    def __init__(self, tensors: Tensors, places: Callable[[Case], Places] = sampled) -> None:
        self.case = case = tensors.case
        self.samples = []
        for batch, head, rows in places(case):
            head_kv = head * case.num_heads_kv // case.num_heads
            q = tensors.of_head("q", batch, head)[rows]
            k, v = (tensors.of_head(name, batch, head_kv) for name in "kv")
            if case.causal:  # these rows alone, aligned to the bottom right, see the keys up to that of the last row
                seen = rows.stop + k.shape[0] - len(tensors.of_head("q", batch, head))
                k, v = k[: max(seen, 0)], v[: max(seen, 0)]
            q, k, v = (x[None, None] for x in (q, k, v))
            true = reference.truth(q, k, v, case.softmax_scale, causal=case.causal)
            same = reference.same_maths(q, k, v, case.dtype, case.softmax_scale, causal=case.causal)
            self.samples.append((batch, head, rows, true.o[0, 0], same.o[0, 0]))

    def verdict(self, rows: Any) -> reference.Verdict:
        """On the function rows(batch, head, rows) -> [rows, head_dim] of an implementation."""
        judge = reference.Judge(self.case.dtype.mantissa_bits)
        for batch, head, where, true, same in self.samples:
            judge.add(np.asarray(rows(batch, head, where)), true, same)
        return judge.verdict

    def errors(self, rows: Any) -> tuple[float, float]:
        """Largest and root mean square error of the function rows(batch, head, rows) -> [rows, head_dim]."""
        off = [np.asarray(rows(b, h, where), np.float64) - true for b, h, where, true, _ in self.samples]
        return max(float(np.abs(x).max()) for x in off), float(np.sqrt(np.mean([np.square(x).mean() for x in off])))


def count_nan(out: Any) -> int:
    """Elements of a 16-bit float array that are NaN: those that were poisoned and not written among them."""
    bits = out.view(np.uint16)
    infinity = 0x7C00 if out.dtype == np.float16 else 0x7F80
    return int(np.count_nonzero((bits & 0x7FFF) > infinity))
