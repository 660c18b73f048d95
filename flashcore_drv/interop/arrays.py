"""What a call needs to know of an array, whoever made it: NumPy, this package, or CUDA Array Interface exporters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import named
from ..errors import InvalidArgument
from ..runtime import Device, DeviceArray, HandleError, dlpack
from ..runtime import driver as runtime_driver
from ..runtime.memory import contiguous_strides

NO_WAIT = -1
"""For the stream that is to wait for an array's producer: none."""


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
    keeps : object
        What else has to live for as long as the view is used.
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
    keeps: Any = None

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


def view_of(array: Any, name: str, stream: int = NO_WAIT) -> ArrayView:
    """The view of an array argument.

    A NumPy array is seen as its C-contiguous copy would be: that is what goes to the GPU. Nothing is copied here.

    Parameters
    ----------
    array : numpy.ndarray, DeviceArray, or an object with ``__cuda_array_interface__`` or ``__dlpack__``
        The argument. A StridedMemoryView of cuda.core will do, too.
    name : str
        Its name.
    stream : int
        For an array that comes by DLPack: the ``CUstream`` that will use it, which its library makes wait for what
        produces it. The producer of another is told of in `producer_stream`, and not waited for.

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
    interface = getattr(array, "__cuda_array_interface__", None) if ready(array) else None
    if interface is not None and not (nameless(interface["typestr"]) and hasattr(array, "__dlpack__")):
        return _cuda_array_interface(array, interface, name)
    if hasattr(array, "is_device_accessible") and hasattr(array, "ptr"):
        return _strided_memory_view(array, name)
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        return _dlpack(array, name, stream)
    raise InvalidArgument(not_an_array(array, name, "numpy.ndarray"))


def not_an_array(array: Any, name: str, also: str) -> str:
    """What to say of an object that is no array on a GPU, nor what is allowed as well."""
    return (
        f"{name} is a {type(array).__module__}.{type(array).__qualname__}; allowed: {also}, flashcore_drv.DeviceArray, "
        "or an array on a GPU with __cuda_array_interface__ or __dlpack__ (CuPy, JAX, Numba, PyTorch)"
    )


def ready(array: Any) -> bool:
    """Whether an array can be used without DLPack.

    One of JAX says whether it is computed: if not, only DLPack can have a stream wait for it. Others say nothing.
    """
    asked = getattr(array, "is_ready", None)
    return asked is None or bool(asked())


def _dlpack(array: Any, name: str, stream: int) -> ArrayView:
    kind, _ = array.__dlpack_device__()
    if int(kind) not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
        raise InvalidArgument(
            f"{name} is on a device of DLPack type {int(kind)}; allowed: {dlpack.CUDA} (CUDA), or a NumPy array, "
            "which numpy.from_dlpack makes of what is on the host"
        )
    try:
        capsule = dlpack.capsule_of(array, stream or 1)  # 0 is ambiguous there
        tensor = dlpack.read(capsule)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InvalidArgument(f"{name}: {type(error).__name__}: {error}") from error
    try:
        dtype = named(tensor.dtype)
    except TypeError:
        raise InvalidArgument(f"{name} has DLPack dtype {tensor.dtype}; allowed: that of a NumPy array") from None
    strides = contiguous_strides(tensor.shape) if tensor.strides is None else tensor.strides
    return view_of_memory(
        name, tensor.shape, strides, dtype, tensor.address, not tensor.read_only, array, keeps=capsule
    )


def _strided_memory_view(array: Any, name: str) -> ArrayView:
    if not array.is_device_accessible or array.dtype is None:
        raise InvalidArgument(f"{name} is {array!r}; allowed: a view of device memory with a dtype")
    shape = tuple(array.shape)
    strides = contiguous_strides(shape) if array.strides is None else tuple(array.strides)
    return view_of_memory(name, shape, strides, np.dtype(array.dtype), int(array.ptr), not array.readonly, array)


def nameless(typestr: str) -> bool:
    """Whether a type string names no dtype: what CuPy and PyTorch say of bfloat16, ``<V2``."""
    return typestr[1:2] == "V"


def _cuda_array_interface(array: Any, interface: Mapping[str, Any], name: str) -> ArrayView:
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
    keeps: Any = None,
) -> ArrayView:
    """The view of an array at an address; parameters as the members of :class:`ArrayView`, strides in elements.

    Raises
    ------
    InvalidArgument
        If it is not device memory of a visible GPU, or the array reaches outside its allocation.
    """
    ordinal, start, size = _allocation(address, name, empty=0 in shape)
    place = Device.get(ordinal)
    view = ArrayView(name, shape, strides, dtype, place, address, writeable, owner, producer_stream, keeps)
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


_MOST_ADDRESSES = 4096
_KNOWN: dict[int, tuple[int, int]] = {}
"""The GPU on which an address of another library is, and the end of its allocation."""


def known_memory(address: int) -> tuple[int, int] | None:
    """The GPU of an address and the end of its allocation; None where it is no device memory.

    The driver is asked when an address is new. Later it is believed to be in the same allocation.
    """
    known = _KNOWN.get(address)
    if known is not None:
        return known
    found = device_memory(int(address)) if address else None
    if found is None:
        return None
    ordinal, start, size = found
    if len(_KNOWN) >= _MOST_ADDRESSES:
        _KNOWN.clear()
    known = _KNOWN[address] = ordinal, start + size
    return known


def forget_memory() -> None:
    """Ask the driver again about every address."""
    _KNOWN.clear()


def host_array(view: ArrayView) -> npt.NDArray[Any]:
    """The NumPy array of a host view, C-contiguous."""
    return np.ascontiguousarray(view.owner)
