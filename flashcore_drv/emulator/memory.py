"""Device memory: separate allocations with guard gaps, and which of their bytes were ever written."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flashcore_drv.emulator.errors import EmulationError
from flashcore_drv.emulator.selection import Array

ALIGNMENT = 512
_GUARD = 1 << 16
_FIRST_ADDRESS = 0x7000_0000_0000


def aligned_bytes(nbytes: int) -> Array:
    """Uninitialised uint8 [nbytes] that starts on 16 bytes, so that it can be viewed as wider elements."""
    raw = np.empty(nbytes + 64, np.uint8)
    start = -int(raw.__array_interface__["data"][0]) % 64
    return raw[start : start + nbytes]


@dataclass(eq=False)
class Allocation:
    """A range of device memory.

    Attributes
    ----------
    address, size : int
        Bytes.
    name : str
        For messages.
    data, written : ndarray
        uint8 [size] (rounded up to 16); `written` is 1 for bytes that were written since the allocation.
    """

    address: int
    size: int
    name: str
    data: Array = field(repr=False)
    written: Array = field(repr=False)
    complete: bool = False
    freed: bool = False

    def __str__(self) -> str:
        return f"{self.name or 'allocation'} ({self.size} bytes at {self.address:#x})"

    def is_complete(self) -> bool:
        """Whether every byte was written."""
        if not self.complete:
            self.complete = bool(self.written[: self.size].all())
        return self.complete


class DeviceMemory:
    """The global memory of an emulated device.

    Parameters
    ----------
    limit_bytes : int or None
        Bytes that may be allocated at once.

    Notes
    -----
    Fresh memory holds 0xFF (NaN in every floating-point format) and is marked as never written.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._next = _FIRST_ADDRESS
        self._starts: list[int] = []
        self._allocations: list[Allocation] = []  # freed ones stay, without their bytes, to be named

    def allocate(self, nbytes: int, name: str = "") -> int:
        """Allocate.

        Parameters
        ----------
        nbytes : int
            Bytes, at least 1.
        name : str, optional
            What messages call it.

        Returns
        -------
        int
            Address, a multiple of 512.

        Raises
        ------
        MemoryError
            Past the limit.
        ValueError
            If `nbytes` is not positive.
        """
        if nbytes <= 0:
            raise ValueError(f"an allocation needs at least one byte, not {nbytes}")
        if self.limit_bytes is not None and self.used_bytes + nbytes > self.limit_bytes:
            raise MemoryError(
                f"{nbytes} bytes do not fit: {self.used_bytes} of {self.limit_bytes} bytes of device memory are in use"
            )
        data = aligned_bytes(-(-nbytes // 16) * 16)
        data.fill(0xFF)
        allocation = Allocation(self._next, nbytes, name, data, np.zeros(data.size, np.uint8))
        self._starts.append(self._next)
        self._allocations.append(allocation)
        self._next += -(-(nbytes + _GUARD) // ALIGNMENT) * ALIGNMENT
        self.used_bytes += nbytes
        return allocation.address

    def free(self, address: int) -> None:
        """Free an allocation; accesses to it are reported from then on.

        Raises
        ------
        ValueError
            If `address` is not the start of a live allocation.
        """
        allocation = self.find(address)
        if allocation is None or allocation.address != address:
            raise ValueError(f"{address:#x} is not the start of an allocation")
        allocation.freed = True
        self.used_bytes -= allocation.size
        allocation.data = allocation.written = np.empty(0, np.uint8)

    def nearest(self, address: int) -> Allocation | None:
        """The allocation, live or freed, that starts at or before an address."""
        i = bisect.bisect_right(self._starts, address) - 1
        return self._allocations[i] if i >= 0 else None

    def find(self, address: int) -> Allocation | None:
        """The live allocation that holds an address."""
        allocation = self.nearest(address)
        if allocation is None or allocation.freed or address >= allocation.address + allocation.size:
            return None
        return allocation

    def explain(self, address: int) -> tuple[str, str]:
        """The kind of error, and where an address is, for one that cannot be accessed."""
        near = self.nearest(address)
        if near is None:
            return "out-of-bounds", f"address {address:#x}, which is not device memory"
        if near.freed and address < near.address + near.size:
            return "use-after-free", f"byte {address - near.address} of {near}, which was freed"
        beyond = address - near.address - near.size
        after = self.nearest(self._starts[bisect.bisect_right(self._starts, address)]) if (
            address < self._starts[-1]
        ) else None  # fmt: skip
        if after is not None and after.address - address < beyond:
            return "out-of-bounds", f"address {address:#x}, {after.address - address} bytes before {after}"
        return "out-of-bounds", f"address {address:#x}, {beyond} bytes past the end of {near}"

    def _range(self, address: int, nbytes: int) -> tuple[Allocation, slice]:
        allocation = self.find(address)
        if allocation is None or nbytes < 0 or address + nbytes > allocation.address + allocation.size:
            last = address if allocation is None else address + nbytes - 1
            kind, where = self.explain(last)
            raise EmulationError(kind if kind == "use-after-free" else "memory", f"{nbytes} bytes at {where}")
        start = address - allocation.address
        return allocation, slice(start, start + nbytes)

    def read(self, address: int, nbytes: int) -> Array:
        """A copy of `nbytes` bytes, uint8. Raises EmulationError outside of one allocation."""
        allocation, part = self._range(address, nbytes)
        result: Array = allocation.data[part].copy()
        return result

    def write(self, address: int, data: Any) -> None:
        """Write a buffer or an array, and mark it as written. Raises EmulationError outside of one allocation."""
        values = np.ascontiguousarray(data).reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else (
            np.frombuffer(data, np.uint8)
        )  # fmt: skip
        allocation, part = self._range(address, values.size)
        allocation.data[part] = values
        allocation.written[part] = 1

    def fill(self, address: int, pattern: bytes, count: int) -> None:
        """Write a pattern of bytes `count` times in a row. Raises EmulationError outside of one allocation."""
        allocation, part = self._range(address, len(pattern) * count)
        allocation.data[part] = np.tile(np.frombuffer(pattern, np.uint8), count)
        allocation.written[part] = 1

    def copy(self, dst: int, src: int, nbytes: int) -> None:
        """Copy within the device; what was never written stays so. Raises EmulationError outside of one allocation."""
        source, source_part = self._range(src, nbytes)
        target, target_part = self._range(dst, nbytes)
        target.data[target_part] = source.data[source_part].copy()
        target.written[target_part] = source.written[source_part].copy()
        target.complete = False
