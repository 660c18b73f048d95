"""Knowing again what was prepared before, by a look at the arguments that costs little."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import Any

from .interop.arrays import device_memory
from .prepared import Prepared
from .runtime import DeviceArray, HandleError

_MOST_ADDRESSES = 4096


class Cache:
    """What was prepared, by what it was prepared from; at most `size` of it, the longest unused forgotten first.

    Reading takes no lock and moves nothing: what was read is marked, and passed over once when room is made
    (second chance, Corbató 1968).
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._entries: dict[Hashable, Prepared] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Prepared | None:
        """What was prepared for `key`."""
        found = self._entries.get(key)
        if found is not None:
            found.recent = True
        return found

    def put(self, key: Hashable, prepared: Prepared) -> None:
        """Keep it."""
        with self._lock:
            while len(self._entries) >= self.size and key not in self._entries:
                oldest = next(iter(self._entries))
                found = self._entries.pop(oldest)
                if found.recent:
                    found.recent = False
                    self._entries[oldest] = found
            self._entries[key] = prepared

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            _ENDS.clear()


Sight = tuple[tuple[Hashable, ...], list[int], "list[tuple[int, int]] | None", "set[int] | None"]
"""What a look at arrays shows, in a plain tuple because that takes the least time:

- all that the preparation depends on, which with the options is the key;
- the addresses of those that are given;
- which of them are another library's, and where the memory that each is in ends;
- the streams whose work on them must be waited for.
"""


def look(arrays: Sequence[Any]) -> Sight | None:
    """What arrays, or None, show; None unless all of them are on a GPU and nothing about them asks for a closer look.

    The driver is asked about the memory of another library's array when its address is new. Later arrays at that
    address are believed to be in the same allocation.
    """
    layouts: list[Hashable] = []
    addresses: list[int] = []
    ends: list[tuple[int, int]] | None = None
    producers: set[int] | None = None
    low_bits = 0
    for x in arrays:
        if x.__class__ is DeviceArray:
            try:
                address = x.address
            except HandleError:
                return None
            layouts.append(x.layout)
        elif x is None:
            layouts.append(None)
            continue
        else:
            interface = getattr(x, "__cuda_array_interface__", None)
            if interface is None or interface.get("mask") is not None or interface.get("stream") == 0:
                return None
            address, read_only = interface["data"]
            known = _ENDS.get(address) or _ask(address)
            if known is None:
                return None
            ordinal, end = known
            layouts.append((interface["shape"], interface.get("strides"), interface["typestr"], ordinal, read_only))
            ends = ends or []
            ends.append((len(addresses), end))
            if (stream := interface.get("stream")) is not None:
                producers = producers or set()
                producers.add(stream)
        low_bits |= address
        addresses.append(address)
    layouts.append(0 if low_bits & 15 == 0 else tuple(a & 15 for a in addresses))
    return tuple(layouts), addresses, ends, producers


_ENDS: dict[int, tuple[int, int]] = {}
"""The GPU on which an address of another library is, and the end of its allocation."""


def _ask(address: int) -> tuple[int, int] | None:
    """The same from the driver; None where it is no device memory."""
    found = device_memory(int(address)) if address else None
    if found is None:
        return None
    ordinal, start, size = found
    if len(_ENDS) >= _MOST_ADDRESSES:
        _ENDS.clear()
    known = _ENDS[address] = ordinal, start + size
    return known


def fits(prepared: Prepared, addresses: list[int], ends: list[tuple[int, int]] | None, with_out: bool) -> bool:
    """Whether what was prepared is right for these very addresses: all in memory, `out`, the fourth, over no input."""
    extents = prepared.extents
    if ends is not None:
        for i, end in ends:
            if addresses[i] + extents[i] > end:
                return False
    if not with_out:
        return True
    first = addresses[3]
    last = first + extents[3]
    there = 0
    for address, extent in zip(addresses, extents):
        if address < last and first < address + extent:
            there += 1
    return there <= (first < last)  # itself
