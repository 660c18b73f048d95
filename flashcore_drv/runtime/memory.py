"""Device memory: owned buffers, and strided arrays in them."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from . import dlpack, driver
from .device import Device
from .errors import HandleError
from .stream import DEFAULT_STREAMS, Event, Stream, from_collector, outside_of_captures


def _release(device: Device, address: int, stream: Stream | None) -> None:
    with outside_of_captures(), device.active():
        if stream is None or (stream.lasting and _is_captured(stream)):  # a node would free it at every replay
            driver.call("cuMemFree", address)
        elif stream.lasting:
            driver.call("cuMemFreeAsync", address, stream.handle)
        else:
            driver.call("cuCtxSynchronize")
            driver.call("cuMemFreeAsync", address, 0)


def _is_captured(stream: Stream) -> bool:
    none = driver.module().CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
    return stream.raw not in DEFAULT_STREAMS and driver.call("cuStreamIsCapturing", stream.handle) != none


class Buffer:
    """Device memory that this object owns: freed by :meth:`free`, or when the object is collected.

    Where the GPU supports it, memory comes from the default pool in the order of `stream`, and is given back in that
    order too if the stream is sure to exist then (see :attr:`Stream.lasting`); otherwise after all work on the GPU.
    Work of other streams on the memory must be ordered before the free by the caller.

    Attributes
    ----------
    stream : Stream or None
        The stream in whose order the memory came; None if it came in no order.
    """

    def __init__(self, device: Device, nbytes: int, stream: Stream | None = None) -> None:
        if nbytes < 0:
            raise ValueError(f"nbytes={nbytes}; allowed: 0 or more")
        self.device, self.nbytes = device, nbytes
        self.stream = (stream or Stream(device, 0)) if device.has_memory_pools else None
        size = max(nbytes, 1)  # the driver has no allocation of nothing
        with device.active():
            if self.stream is None:
                pointer = driver.call("cuMemAlloc", size)
            else:
                pointer = driver.call("cuMemAllocAsync", size, self.stream.handle)
        self._address: int | None = int(pointer)
        self._views: list[weakref.ref[DeviceArray]] = []
        self._most_views = 8
        self._finalizer = weakref.finalize(self, from_collector, _release, device, self._address, self.stream)
        self._finalizer.atexit = False  # the driver gives everything back at exit

    @property
    def address(self) -> int:
        """Address of the first byte. Raises HandleError after :meth:`free`."""
        if self._address is None:
            raise HandleError(f"device memory of {self.nbytes} bytes: used after free()")
        return self._address

    def viewed(self, array: DeviceArray) -> int | None:
        """Note that an array is a view of this memory, and has to forget its address when it is freed; the address."""
        with _VIEWS:
            self._views.append(weakref.ref(array))
            if len(self._views) > self._most_views:
                self._views = [x for x in self._views if x() is not None]
                self._most_views = 8 + 2 * len(self._views)
            return self._address

    def free(self, stream: Stream | None = None) -> None:
        """Give the memory back, in the order of `stream` if one is given. A second call does nothing."""
        with _VIEWS:
            address, self._address = self._address, None
            for view in self._views:
                if (array := view()) is not None:
                    array.address_or_none = None
        if address is None or self._finalizer.detach() is None:
            return
        if stream is not None and self.device.has_memory_pools:
            with self.device.active():
                driver.call("cuMemFreeAsync", address, stream.handle)
        else:
            _release(self.device, address, self.stream)


_VIEWS = threading.RLock()  # the garbage collector may come in between, and free in the same thread


class DeviceArray:
    """An array in device memory.

    Parameters
    ----------
    buffer : Buffer
        The memory, shared by all views of it.
    shape, strides : tuple of int
        Elements along each dimension; distance of neighbours in elements.
    dtype : numpy.dtype
        Element type.
    offset : int
        Elements before the first.

    Attributes
    ----------
    address_or_none : int or None
        Address of the first element; None when the memory was freed. For where the check of `address` takes too much
        time.
    layout : tuple
        (shape, strides, dtype, ordinal of the GPU): all but the address, to look things up by.
    """

    __slots__ = ("__weakref__", "address_or_none", "buffer", "dtype", "layout", "offset", "shape", "strides")

    def __init__(
        self, buffer: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...], offset: int = 0
    ) -> None:
        self.buffer, self.shape, self.dtype, self.strides, self.offset = buffer, shape, dtype, strides, offset
        begins = buffer.viewed(self)
        self.address_or_none = None if begins is None else begins + offset * dtype.itemsize
        self.layout = shape, strides, dtype, buffer.device.ordinal

    @staticmethod
    def empty(
        shape: tuple[int, ...], dtype: npt.DTypeLike, device: Device | None = None, stream: Stream | None = None
    ) -> DeviceArray:
        """A new C-contiguous array whose elements are undefined."""
        kind = np.dtype(dtype)
        buffer = Buffer(device or Device.current(), int(np.prod(shape, dtype=np.int64)) * kind.itemsize, stream)
        return DeviceArray(buffer, tuple(shape), kind, contiguous_strides(shape))

    @staticmethod
    def from_numpy(array: npt.NDArray[Any], device: Device | None = None, stream: Stream | None = None) -> DeviceArray:
        """A new C-contiguous copy of a NumPy array; complete when this returns."""
        made = DeviceArray.empty(array.shape, array.dtype, device, stream)
        made.copy_from(array, stream)
        return made

    @property
    def device(self) -> Device:
        """The GPU."""
        return self.buffer.device

    @property
    def address(self) -> int:
        """Address of the first element. Raises HandleError if the memory was freed."""
        return self.buffer.address + self.offset * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * self.dtype.itemsize

    def as_strided(self, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> DeviceArray:
        """A view of the same buffer; `strides` and `offset` in elements, `offset` from this array's first element.

        Raises
        ------
        ValueError
            If it reaches past the buffer.
        """
        view = DeviceArray(self.buffer, tuple(shape), self.dtype, tuple(strides), self.offset + offset)
        ends = [(n - 1) * s for n, s in zip(view.shape, view.strides)] if view.size else [0]
        first, last = view.offset + sum(min(e, 0) for e in ends), view.offset + sum(max(e, 0) for e in ends)
        if first < 0 or (view.size and (last + 1) * view.dtype.itemsize > self.buffer.nbytes):
            raise ValueError(
                f"shape={shape}, strides={strides}, offset={offset} reach elements {first} to {last} of a buffer of "
                f"{self.buffer.nbytes // self.dtype.itemsize}"
            )
        return view

    def _host_span(self, array: npt.NDArray[Any], argument: str) -> int:
        """Address of a C-contiguous host array that matches this one."""
        if self.strides != contiguous_strides(self.shape):
            raise ValueError(
                f"a copy needs a C-contiguous device array; this has shape {self.shape}, strides {self.strides}"
            )
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"{argument} has shape {array.shape} and dtype {array.dtype}; allowed: {self.shape} and {self.dtype}"
            )
        address: int = array.__array_interface__["data"][0]
        return address

    def copy_from(self, array: npt.NDArray[Any], stream: Stream | None = None, *, wait: bool = True) -> None:
        """Copy a NumPy array of the same shape and dtype here.

        Parameters
        ----------
        array : numpy.ndarray
            What to copy.
        stream : Stream, optional
            By default the legacy default stream.
        wait : bool
            Return when the copy is complete. Otherwise it is only queued, and `array` must be pageable memory, whose
            bytes the driver has taken when this returns.

        Raises
        ------
        ValueError
            If `array` does not match, or this array is not C-contiguous.
        """
        source = np.asarray(array, order="C")
        address = self._host_span(source, "array")
        stream = stream or Stream(self.device, 0)
        with self.device.active():
            if self.nbytes:
                driver.call("cuMemcpyHtoDAsync", self.address, address, self.nbytes, stream.handle)
            if wait:
                driver.call("cuStreamSynchronize", stream.handle)

    def to_numpy(self, out: npt.NDArray[Any] | None = None, stream: Stream | None = None) -> npt.NDArray[Any]:
        """A copy as a NumPy array, after all work in `stream`.

        Parameters
        ----------
        out : numpy.ndarray, optional
            C-contiguous array of the same shape and dtype to copy into.
        stream : Stream, optional
            By default the legacy default stream.

        Raises
        ------
        ValueError
            If this array or `out` is not C-contiguous, or `out` does not match.
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        if not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError("out is not a writeable C-contiguous array")
        address = self._host_span(out, "out")
        stream = stream or Stream(self.device, 0)
        with self.device.active():
            if self.nbytes:
                driver.call("cuMemcpyDtoHAsync", address, self.address, self.nbytes, stream.handle)
            driver.call("cuStreamSynchronize", stream.handle)
        return out

    def fill_bytes(self, value: int, stream: Stream | None = None) -> None:
        """Set every byte of the buffer to `value` (0xFF makes NaN of every float type)."""
        stream = stream or Stream(self.device, 0)
        with self.device.active():
            driver.call("cuMemsetD8Async", self.buffer.address, value, max(self.buffer.nbytes, 1), stream.handle)

    def free(self) -> None:
        """Give the buffer back, for all its views. A second call does nothing."""
        self.buffer.free()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """CUDA Array Interface, version 3: `stream` is that in which the array was made.

        If that one may be gone (:attr:`Stream.lasting`), all work on the GPU is waited for instead. bfloat16 and the
        float8 types have no type string there: AttributeError. Those go by :meth:`__dlpack__`.
        """
        if self.dtype.kind not in "iuf":
            raise AttributeError(f"the CUDA Array Interface has no type string for {self.dtype}")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": tuple(s * self.dtype.itemsize for s in self.strides),
            "stream": self._producer().handle or 1,  # 0 is not allowed there
            "version": 3,
        }

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule of this array, which keeps its memory until whoever takes it gives it back.

        Parameters
        ----------
        stream : int, optional
            Where the taker will use it: 1, the default, is the legacy default stream, 2 that of the thread, else a
            ``CUstream``. It is made to wait for the stream in which the array was made; -1: nothing waits. Work on the
            array in another stream has to be ordered by the caller.
        max_version : (int, int), optional
            The newest version that the taker knows: from 1 on the capsule is versioned, if NumPy is 2.1 or later.
        dl_device : (int, int), optional
            Only the device that it is on.
        copy : bool, optional
            Not True: nothing is copied here.

        Raises
        ------
        BufferError
            For another device, a copy, or a dtype that DLPack has not.
        HandleError
            For stream 0, which is ambiguous, and if the memory was freed.
        """
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"dl_device={dl_device}; allowed: {self.__dlpack_device__()}, where the array is")
        if copy:
            raise BufferError("copy=True; allowed: False, None (nothing is copied)")
        if stream == 0:
            raise HandleError("stream=0 of DLPack; allowed: None, 1, 2, a handle, or -1")
        address = self.address
        if stream != -1:
            consumer, producer = Stream(self.device, stream or 1), self._producer()
            if consumer.handle != (producer.handle or 1):
                ready = Event(self.device)
                ready.record(producer)
                consumer.wait(ready)
                ready.close()
        versioned = max_version is not None and max_version[0] >= 1
        ordinal, owner = self.device.ordinal, self.buffer
        return dlpack.make(address, self.shape, self.strides, self.dtype, ordinal, owner, versioned)

    def __dlpack_device__(self) -> tuple[int, int]:
        """(2, GPU): CUDA."""
        return dlpack.CUDA, self.device.ordinal

    def _producer(self) -> Stream:
        """The stream in which the array was made, or one that is done with everything."""
        if driver.forked:
            raise driver.fork_refusal()
        made = self.buffer.stream
        if made is None or made.lasting:
            return made or Stream(self.device, 1)
        self.device.synchronize()
        return Stream(self.device, 1)

    def __repr__(self) -> str:
        return f"<DeviceArray {self.shape} {self.dtype} on device {self.device.ordinal}>"


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a C-contiguous array."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))
