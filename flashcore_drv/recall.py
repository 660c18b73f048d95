"""Knowing again what was prepared before, by a look at the arguments that costs little."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .interop.arrays import forget_memory, known_memory, nameless, ready
from .prepared import Prepared
from .runtime import DeviceArray, HandleError, Launch

_MOST_CALLS = 1024
_MOST_CLASSES = 64


class Again(NamedTuple):
    """A call that was made with arrays at certain addresses, to be made again."""

    layouts: tuple[Any, ...]
    options: tuple[Any, ...]
    prepared: Prepared
    launch: Launch | None


class Cache:
    """What was prepared, by what it was prepared from; at most `size` of it, the longest unused forgotten first.

    Reading takes no lock and moves nothing: what was read is marked, and passed over once when room is made
    (second chance, Corbató 1968).

    Attributes
    ----------
    again : dict of tuple of int to Again
        The last call with q, k, v and out at these addresses. Only :meth:`keep` adds to it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._entries: dict[Hashable, Prepared] = {}
        self.again: dict[tuple[int, ...], Again] = {}

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
                else:
                    self.again.clear()
            self._entries[key] = prepared

    def keep(self, addresses: tuple[int, ...], call: Again) -> None:
        """Keep a call by its addresses."""
        with self._lock:
            if len(self.again) >= _MOST_CALLS:
                self.again.clear()
            self.again[addresses] = call

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.again.clear()
            forget_memory()


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
            if interface is None or interface.get("mask") is not None or interface.get("stream") == 0 or not ready(x):
                return None
            address, read_only = interface["data"]
            known = known_memory(address)
            if known is None:
                return None
            ordinal, end = known
            dtype = dtype_shown(x, interface)
            layouts.append((interface["shape"], interface.get("strides"), dtype, ordinal, read_only))
            ends = ends or []
            ends.append((len(addresses), end))
            if (stream := interface.get("stream")) is not None:
                producers = producers or set()
                producers.add(stream)
        low_bits |= address
        addresses.append(address)
    layouts.append(0 if low_bits & 15 == 0 else tuple(a & 15 for a in addresses))
    return tuple(layouts), addresses, ends, producers


Glance = tuple[tuple[int, ...], tuple[Any, ...], "int | None"]
"""What a glance at q, k, v and out shows: their addresses; all else that the preparation depends on; their stream."""


def glance(q: Any, k: Any, v: Any, out: Any) -> Glance | None:
    """What q, k, v and out on a GPU show at a glance, less than :func:`look` and in less time.

    It is enough to know a call again that was made before with arrays at these very addresses: :attr:`Cache.again`.
    None where more than a glance is needed. Of an array of JAX, it believes that it is laid out as the one before.
    """
    kind, last = q.__class__, out.__class__
    if kind is k.__class__ is v.__class__:  # the usual ones at once, because a loop takes twice the time
        if kind is DeviceArray is last:
            addresses = q.address_or_none, k.address_or_none, v.address_or_none, out.address_or_none
            return addresses, (q.layout, k.layout, v.layout, out.layout), None
        like, current = _LIKE.get(kind, _UNKNOWN)
        if like is _JAX and last is DeviceArray:
            if not (q.is_ready() and k.is_ready() and v.is_ready()):
                return None
            at = q.unsafe_buffer_pointer(), k.unsafe_buffer_pointer(), v.unsafe_buffer_pointer(), out.address_or_none
            return at, (q.aval, k.aval, v.aval, out.layout), None
        if like is _CUPY and last is kind:
            layouts = (
                (q.shape, q._c_contiguous or q.strides, q.dtype),
                (k.shape, k._c_contiguous or k.strides, k.dtype),
                (v.shape, v._c_contiguous or v.strides, v.dtype),
                (out.shape, out._c_contiguous or out.strides, out.dtype),
            )
            return (q.data.ptr, k.data.ptr, v.data.ptr, out.data.ptr), layouts, current(q)
    seen = [one for x in (q, k, v, out) if (one := _one(x)) is not None]
    streams = {one[2] for one in seen} - {None}
    if len(seen) < 4 or len(streams) > 1:
        return None
    return tuple(one[0] for one in seen), tuple(one[1] for one in seen), next(iter(streams), None)


def _one(x: Any) -> tuple[Any, Any, int | None] | None:
    """The address, layout and stream of one array, at a glance."""
    kind = x.__class__
    if kind is DeviceArray:
        return x.address_or_none, x.layout, None
    like, current = _LIKE.get(kind) or _is_like(kind, x)
    if not ready(x):
        return None
    if like is _JAX:
        return x.unsafe_buffer_pointer(), x.aval, None
    if like is _CUPY:
        return x.data.ptr, (x.shape, x._c_contiguous or x.strides, x.dtype), current(x)
    interface = getattr(x, "__cuda_array_interface__", None)
    if interface is None or interface.get("mask") is not None:
        return None
    address, read_only = interface["data"]
    layout = interface["shape"], interface.get("strides"), dtype_shown(x, interface), read_only
    return address, layout, interface.get("stream")


Like = tuple[str, "Callable[[Any], int | None]"]
"""A library, and what says which stream its array is for."""

_CUPY, _JAX = "CuPy", "JAX"
_LIKE: dict[type, Like] = {}
"""The library that a class of arrays is like, whose attributes say more in less time than the interface does."""


def _is_like(kind: type, x: Any) -> Like:
    """Find out."""
    data = None if isinstance(x, np.ndarray) else getattr(x, "data", None)  # of bfloat16 NumPy's raises ValueError
    address = getattr(data, "ptr", None)
    kinds = type(address), type(getattr(x, "shape", None)), type(getattr(x, "strides", None))
    like = _UNKNOWN
    if kinds == (int, tuple, tuple) and isinstance(getattr(x, "dtype", None), np.dtype) and hasattr(x, "_c_contiguous"):
        like = _CUPY, _current_stream(kind)
    elif all(hasattr(x, name) for name in ("unsafe_buffer_pointer", "is_ready", "aval")):
        like = _JAX, _stream_shown
    if len(_LIKE) >= _MOST_CLASSES:
        _LIKE.clear()
    _LIKE[kind] = like
    return like


def _stream_shown(x: Any) -> int | None:
    """The stream that the interface of an array names."""
    interface: Mapping[str, Any] = x.__cuda_array_interface__
    return interface.get("stream")


_UNKNOWN: Like = "", _stream_shown


def _current_stream(kind: type) -> Callable[[Any], int | None]:
    """What says the stream of an array of CuPy: the current one, asked for without making a whole interface."""
    library = sys.modules.get(kind.__module__.partition(".")[0])
    asked = getattr(getattr(library, "cuda", None), "get_current_stream", None)
    return _stream_shown if asked is None else lambda _: asked().ptr or 1  # as the interface writes 0


def dtype_shown(x: Any, interface: Mapping[str, Any]) -> Hashable:
    """What an array shows of its dtype."""
    typestr = interface["typestr"]
    return (typestr, getattr(x, "dtype", None)) if nameless(typestr) else typestr


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
