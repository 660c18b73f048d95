"""The address of an array on a GPU, in as little time as its library allows."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InvalidArgument
from ..runtime import DeviceArray, HandleError, dlpack
from .arrays import known_memory, not_an_array

_MOST_CLASSES = 64
_READERS: dict[type, Callable[[Any], int]] = {}
"""How the address of an array of a class is read, found out at the first of them."""


def address_of(array: Any, name: str) -> int:
    """The address of an array on a GPU, or an address as it is; where it is, is not looked at.

    Raises
    ------
    InvalidArgument
        If it is neither, or a DeviceArray that was freed.
    """
    reader = _READERS.get(array.__class__)
    if reader is not None:
        return reader(array)
    if isinstance(array, DeviceArray):
        try:
            return array.address
        except HandleError as error:
            raise InvalidArgument(f"{name}: {error}") from None
    return _reader(array, name)(array)


def on_gpu(array: Any, name: str) -> int:
    """The same; another library's array must be in device memory. Raises InvalidArgument."""
    address = address_of(array, name)
    if address and not isinstance(array, (int, np.integer, DeviceArray)) and known_memory(address) is None:
        raise InvalidArgument(
            f"{name} points to {address:#x}, which is not device memory (freed, or host memory); allowed: device memory"
        )
    return address


def refuse_immutable(array: Any, name: str) -> None:
    """Raise InvalidArgument for an output that its library will not have changed."""
    if type(array).__module__.partition(".")[0] in ("jax", "jaxlib"):
        raise InvalidArgument(
            f"{name} is an array of JAX, which never change; allowed: inputs only. Leave it out or give a "
            "flashcore_drv.DeviceArray, which JAX takes with jax.dlpack.from_dlpack"
        )


def _reader(array: Any, name: str) -> Callable[[Any], int]:
    """How addresses of arrays of this class are read."""
    found = _reader_of(array)
    if found is None:
        raise InvalidArgument(not_an_array(array, name, "an address"))
    if len(_READERS) >= _MOST_CLASSES:
        _READERS.clear()
    _READERS[array.__class__] = found
    return found


def _reader_of(array: Any) -> Callable[[Any], int] | None:
    if isinstance(array, (int, np.integer)):
        return int
    if isinstance(array, np.ndarray):
        return None
    if callable(getattr(array, "data_ptr", None)):  # PyTorch
        return operator.methodcaller("data_ptr")
    if callable(getattr(array, "unsafe_buffer_pointer", None)):  # JAX
        return operator.methodcaller("unsafe_buffer_pointer")
    if isinstance(getattr(getattr(array, "data", None), "ptr", None), int):  # CuPy
        return operator.attrgetter("data.ptr")
    if getattr(array, "__cuda_array_interface__", None) is not None:
        return lambda x: int(x.__cuda_array_interface__["data"][0])
    if hasattr(array, "is_device_accessible"):  # cuda.core: StridedMemoryView, Buffer
        return (lambda x: int(x.ptr)) if hasattr(array, "ptr") else lambda x: int(x.handle)
    if hasattr(array, "__dlpack__"):
        return lambda x: dlpack.read(dlpack.capsule_of(x, -1)).address
    return None
