"""What Hopper's tensor copies (TMA) can express of a problem, and their description of its tensors. No CUDA here.

The rules are those of ``cuTensorMapEncodeTiled`` (CUDA driver API, "Tensor Map Object Management").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .catalog import HOPPER
from .problem import Matrices, Problem

_STRIDE_BYTES = 16  # every stride is a multiple of this
_LONGEST_STRIDE = 1 << 40  # bytes


class Tiled(NamedTuple):
    """A tensor as a tensor map describes it: elements, and bytes from one to the next, the contiguous dimension first.

    Attributes
    ----------
    dims : tuple of int
        (cols, rows, heads, batch); of packed sequences all rows, and batch 1.
    strides : tuple of int
        Of rows, heads and batch.
    """

    dims: tuple[int, int, int, int]
    strides: tuple[int, int, int]


def tiled(problem: Problem) -> tuple[Tiled, Tiled, Tiled]:
    """q, k and v of a problem."""
    packed = problem.varlen
    rows_q, rows_k = (packed.total_q, packed.total_k) if packed else (problem.seqlen_q, problem.seqlen_k)
    size, batch = problem.dtype.itemsize, 1 if packed else problem.batch

    def describe(x: Matrices, rows: int) -> Tiled:
        extents = rows, x.heads, batch
        strides = x.row_stride * size, x.head_stride * size, x.batch_stride * size
        # where there is one only, its stride is not looked at, but must be a legal one
        legal = (s if n > 1 else x.cols * size for n, s in zip(extents, strides))
        return Tiled((x.cols, *extents), (next(legal), next(legal), next(legal)))

    return describe(problem.q, rows_q), describe(problem.k, rows_k), describe(problem.v, rows_k)


def lacking(problem: Problem, arch: int) -> list[str]:
    """Why no kernel that copies by TMA solves a problem on a GPU of compute capability `arch`; nothing if one does."""
    missing = [] if arch == HOPPER else [f"sm_{arch}"]
    if not problem.aligned:
        missing.append("rows of q, k, v or out that do not start on 16 bytes")
    for name, x in zip("qkv", tiled(problem)):
        missing += [f"{name} {what}" for what in _inexpressible(x)]
    return missing


def _inexpressible(x: Tiled) -> Iterator[str]:
    """What a tensor has that no tensor map can."""
    if 0 in x.dims:
        yield f"of {' x '.join(map(str, reversed(x.dims)))} elements"
        return
    for name, stride in zip(("rows", "heads", "batch"), x.strides):
        if not 0 <= stride < _LONGEST_STRIDE:
            yield f"with a {name} stride of {stride} bytes"
