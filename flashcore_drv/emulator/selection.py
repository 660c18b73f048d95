"""The threads of a batch that execute one step together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """Where the threads of a batch are: whole blocks after another, each padded to whole warps.

    Attributes
    ----------
    blocks, threads : int
        Blocks of the batch, threads a block.
    shared_bytes : int
        Bytes from the shared memory of one block to that of the next.
    has_warpgroups : bool
        Pad to whole warpgroups (of four warps).
    """

    blocks: int
    threads: int
    shared_bytes: int
    has_warpgroups: bool = False

    @cached_property
    def real_warps(self) -> int:
        """Warps of a block that have threads, the last perhaps incomplete."""
        return -(-self.threads // 32)

    @cached_property
    def warps_per_block(self) -> int:
        """Warps of a block, those that pad it included."""
        return -(-self.real_warps // 4) * 4 if self.has_warpgroups else self.real_warps

    @cached_property
    def warps(self) -> int:
        """Warps of the batch."""
        return self.blocks * self.warps_per_block

    @cached_property
    def n(self) -> int:
        """Lanes of the batch, those that pad a block included."""
        return self.warps * 32

    @cached_property
    def everyone(self) -> Array:
        """int64 [n]: 0, 1, 2, …"""
        return np.arange(self.n)

    @cached_property
    def warp(self) -> Array:
        """int64 [n]: the warp in the batch."""
        return self.everyone // 32

    @cached_property
    def block(self) -> Array:
        """int64 [n]: the block in the batch."""
        return self.everyone // (self.warps_per_block * 32)

    @cached_property
    def thread(self) -> Array:
        """int64 [n]: the thread in its block."""
        return self.everyone % (self.warps_per_block * 32)

    @cached_property
    def exists(self) -> Array:
        """Bool [n]: False for the lanes that pad a block."""
        return self.thread < self.threads

    @cached_property
    def shared_base(self) -> Array:
        """int64 [n]: where the thread's shared memory starts in that of the batch."""
        return self.block * self.shared_bytes

    @cached_property
    def block_of_warp(self) -> Array:
        """int64 [warps]."""
        return np.arange(self.warps) // self.warps_per_block


class Accessors:
    """For each of a number of memory accesses, the warp that makes it (int64, in the batch)."""

    def __init__(self, layout: Layout, warp: Array, thread: Array | None = None) -> None:
        self.layout = layout
        self.warp = warp
        self.thread = thread

    @cached_property
    def shared_base(self) -> Array:
        """int64: where the block's shared memory starts in that of the batch."""
        return self.layout.block_of_warp[self.warp] * self.layout.shared_bytes

    @cached_property
    def block(self) -> Array:
        """int64: the block in the batch."""
        return self.layout.block_of_warp[self.warp]


class Selection:
    """A set of threads, with the forms in which instructions want it computed once.

    A contiguous set is a slice (NumPy views, no copies), a dense one is computed over all threads and written through
    a mask, a sparse one is gathered and scattered.
    """

    def __init__(self, layout: Layout, mask: Array, count: int | None = None) -> None:
        self.layout = layout
        self.mask = mask
        self.n = int(np.count_nonzero(mask)) if count is None else count
        self.full = self.n == mask.size
        self.slice: slice | None = None
        if self.full:
            self.slice = slice(None)
        elif self.n:
            first, end = int(mask.argmax()), mask.size - int(mask[::-1].argmax())
            if end - first == self.n:
                self.slice = slice(first, end)
        self.dense = self.slice is None and self.n * 4 >= mask.size

    @cached_property
    def index(self) -> Array:
        """int64 [n]: the threads, ascending."""
        if self.slice is not None:
            return self.layout.everyone[self.slice]
        return np.flatnonzero(self.mask)

    def pick(self, values: Array) -> Array:
        """The selected elements of an array over all threads (a view where that is possible)."""
        return values[self.slice] if self.slice is not None else values[self.index]

    def put(self, target: Array, values: Any) -> None:
        """Write the selected elements of an array over all threads."""
        if self.slice is not None:
            target[self.slice] = values
        else:
            target[self.index] = values

    def narrow(self, chosen: Array) -> Selection:
        """The part for which `chosen` (bool [n]) is true."""
        if self.full:
            return Selection(self.layout, chosen.copy())  # it may be a view of a register
        mask = np.zeros(self.layout.n, np.bool_)
        self.put(mask, chosen)
        return Selection(self.layout, mask)

    @cached_property
    def warps(self) -> Array:
        """int64: the warps in the batch that have a selected thread."""
        if self.slice is not None and self.whole:
            return np.arange(int(self.index[0]) // 32, (int(self.index[-1]) + 1) // 32)
        return np.flatnonzero(self.mask.reshape(-1, 32).any(1))

    @cached_property
    def whole(self) -> bool:
        """Whether every warp is selected with all its 32 lanes or with none."""
        if self.full:
            return True
        if self.slice is not None:
            return bool(self.slice.start % 32 == 0 and self.slice.stop % 32 == 0)
        lanes = self.mask.reshape(-1, 32)
        return bool((lanes.any(1) == lanes.all(1)).all())

    @cached_property
    def accessors(self) -> Accessors:
        """One access a thread."""
        return Accessors(self.layout, self.pick(self.layout.warp), self.index)

    @cached_property
    def _tiles(self) -> dict[int, Accessors]:
        return {}

    def rows(self, per_warp: int) -> Accessors:
        """`per_warp` accesses by each warp, warp after warp."""
        if per_warp not in self._tiles:
            self._tiles[per_warp] = Accessors(self.layout, np.repeat(self.warps, per_warp))
        return self._tiles[per_warp]
