"""What a call needs to know of an array, whoever made it: NumPy, this package, or CUDA Array Interface exporters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidArgument
from ..runtime import Device, DeviceArray, HandleError
from ..runtime import driver as runtime_driver
from ..runtime.memory import contiguous_strides


@dataclass(frozen=True)
class ArrayView:
    """An array argument: where its elements are.

    Attributes
    ----------
    name : str
        The argument's name, for messages.
    shape, strides : tuple of int
        Elements along each dimension; distance of neighbours in elements.
    dtype : numpy.dtype
        Element type.
    device : Device or None
        The GPU; None for a host array.
    address : int
        Address of the first element.
    writeable : bool
        Whether it may be an output.
    owner : object
        The array itself, which keeps the memory alive.
    producer_stream : int or None
        Stream whose work on the array must be waited for (CUDA Array Interface, version 3).
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: Device | None
    address: int
    writeable: bool
    owner: Any
    producer_stream: int | None = None

    @property
    def gpu_address(self) -> int:
        """Address of the first element on the GPU; 0 for a host array, which the call will copy."""
        return 0 if self.device is None else self.address

    @property
    def host_values(self) -> npt.NDArray[Any] | None:
        """The elements of a host array; None for one on a GPU."""
        return self.owner if self.device is None else None

    @cached_property
    def span(self) -> tuple[int, int]:
        """Addresses of the first byte and of the one past the last (equal for an empty array)."""
        size = self.dtype.itemsize
        first = last = self.address
        byte_strides = self.owner.strides if self.device is None else [s * size for s in self.strides]
        for n, stride in zip(self.shape, byte_strides):
            if n == 0:
                return self.address, self.address
            if stride < 0:
                first += (n - 1) * stride
            else:
                last += (n - 1) * stride
        return first, last + size


def view_of(array: Any, name: str) -> ArrayView:
    """The view of an array argument.

    A NumPy array is seen as its C-contiguous copy would be: that is what goes to the GPU. Nothing is copied here.

    Parameters
    ----------
    array : numpy.ndarray, DeviceArray, or an object with ``__cuda_array_interface__``
        The argument.
    name : str
        Its name.

    Raises
    ------
    InvalidArgument
        If it is none of these, was freed, is masked, is not device memory of a visible GPU, or reaches outside its
        allocation.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidArgument(f"{name} has a mask; allowed: arrays without")
    if isinstance(array, np.ndarray):
        return ArrayView(
            name,
            array.shape,
            contiguous_strides(array.shape),
            array.dtype,
            None,
            array.__array_interface__["data"][0],
            array.flags.writeable,
            array,
        )
    if isinstance(array, DeviceArray):
        try:
            address = array.address
        except HandleError as error:
            raise InvalidArgument(f"{name}: {error}") from None
        return ArrayView(name, array.shape, array.strides, array.dtype, array.device, address, True, array)
    if hasattr(array, "__cuda_array_interface__"):
        return _cuda_array_interface(array, name)
    raise InvalidArgument(
        f"{name} is a {type(array).__module__}.{type(array).__qualname__}; allowed: numpy.ndarray, "
        "flashcore_drv.DeviceArray, or an object with __cuda_array_interface__ (CuPy, Numba, PyTorch)"
    )


def _cuda_array_interface(array: Any, name: str) -> ArrayView:
    interface = array.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise InvalidArgument(f"{name} has a mask; allowed: arrays without")
    try:
        dtype = np.dtype(interface["typestr"])
    except TypeError:
        raise InvalidArgument(
            f"{name} has typestr {interface['typestr']!r}; allowed: that of a dtype, for example '<f2' for float16"
        ) from None
    shape = tuple(int(n) for n in interface["shape"])
    byte_strides = interface.get("strides")
    if byte_strides is None:
        strides = contiguous_strides(shape)
    elif len(byte_strides) != len(shape):
        raise InvalidArgument(
            f"{name} has strides of {byte_strides} bytes; allowed: one for each of {len(shape)} dimensions"
        )
    elif any(s % dtype.itemsize for s in byte_strides):
        raise InvalidArgument(f"{name} has strides of {byte_strides} bytes; allowed: multiples of {dtype.itemsize}")
    else:
        strides = tuple(int(s) // dtype.itemsize for s in byte_strides)
    stream = interface.get("stream")
    if stream == 0:
        raise InvalidArgument(f"{name}: stream 0 of its CUDA Array Interface; allowed: None, 1, 2 or a handle")
    address, read_only = interface["data"]
    return view_of_memory(name, shape, strides, dtype, int(address), not read_only, array, stream)


def view_of_memory(
    name: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
    address: int,
    writeable: bool = True,
    owner: Any = None,
    producer_stream: int | None = None,
) -> ArrayView:
    """The view of an array at an address; parameters as the members of :class:`ArrayView`, strides in elements.

    Raises
    ------
    InvalidArgument
        If it is not device memory of a visible GPU, or the array reaches outside its allocation.
    """
    ordinal, start, size = _allocation(address, name, empty=0 in shape)
    view = ArrayView(name, shape, strides, dtype, Device.get(ordinal), address, writeable, owner, producer_stream)
    first, last = view.span
    if first < start or last > start + size:
        raise InvalidArgument(
            f"{name} reaches from {first:#x} to {last:#x}, outside its allocation of {size} bytes at {start:#x}"
        )
    return view


def _allocation(address: int, name: str, empty: bool) -> tuple[int, int, int]:
    """GPU ordinal, first address and bytes of the device memory that holds `address`."""
    if address == 0 and empty:
        return Device.current().ordinal, 0, 0
    if address == 0:
        raise InvalidArgument(f"{name} has a null pointer; allowed: device memory")
    found = device_memory(address)
    if found is None:
        raise InvalidArgument(
            f"{name} points to {address:#x}, which is not device memory (freed, or host memory); allowed: device memory"
        )
    return found


def device_memory(address: int) -> tuple[int, int, int] | None:
    """GPU ordinal, first address and bytes of the device memory that holds `address`; None where it is none."""
    enum = runtime_driver.module().CUpointer_attribute
    wanted = ("MEMORY_TYPE", "DEVICE_ORDINAL", "RANGE_START_ADDR", "RANGE_SIZE")
    attributes = [getattr(enum, f"CU_POINTER_ATTRIBUTE_{w}") for w in wanted]
    with Device.current().active():
        kind, ordinal, start, size = runtime_driver.call("cuPointerGetAttributes", len(attributes), attributes, address)
    if int(kind) != int(runtime_driver.module().CUmemorytype.CU_MEMORYTYPE_DEVICE):
        return None
    return int(ordinal), int(start or 0), int(size)


def host_array(view: ArrayView) -> npt.NDArray[Any]:
    """The NumPy array of a host view, C-contiguous."""
    return np.ascontiguousarray(view.owner)
