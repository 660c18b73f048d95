"""Host memory by address, without ctypes: NumPy views of what ``__array_interface__`` describes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from cuda.bindings.driver import CUdeviceptr

PAGE = 4096

Bytes = npt.NDArray[np.uint8]


class _Span:
    """Memory as NumPy's array interface describes it (NumPy reference, "The array interface protocol")."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False)}


def host_bytes(address: int, size: int) -> Bytes:
    """Return a writable view of host memory.

    Parameters
    ----------
    address : int
        Where it starts. As with the real driver, an address that is not mapped ends the process.
    size : int
        Bytes.
    """
    return np.asarray(_Span(address, size))


def address_of(array: npt.NDArray[Any]) -> int:
    """Return the address of an array's first element."""
    return int(array.__array_interface__["data"][0])


def host_string(address: int) -> bytes:
    """Return the bytes from ``address`` up to the first NUL, reading no page beyond it."""
    parts: list[bytes] = []
    while True:
        chunk = host_bytes(address, PAGE - address % PAGE)
        end = np.flatnonzero(chunk == 0)
        if end.size:
            return b"".join([*parts, chunk[: end[0]].tobytes()])
        parts.append(chunk.tobytes())
        address += chunk.size


def void_pointer(argument: Any) -> int:
    """Return the address of a ``void*`` argument: an int, a device pointer, None or an object with a buffer.

    Raises
    ------
    TypeError
        For anything else, and for NumPy scalars: the bindings take those as buffers that hold the bytes, so that
        ``np.uint64(address)`` passes the address of a copy of the address. ``int(address)`` is meant.
    """
    if argument is None:
        return 0
    if isinstance(argument, np.generic):
        raise TypeError(f"a NumPy scalar ({argument!r}) is taken as a buffer, not as an address: pass int(...)")
    if isinstance(argument, (int, CUdeviceptr)):
        return int(argument)
    return address_of(np.frombuffer(argument, np.uint8))
