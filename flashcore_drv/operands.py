"""The arrays of one call: inputs brought to the GPU where they are on the host, outputs made or filled, all freed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .errors import InvalidArgument
from .interop.arrays import ArrayView, host_array
from .runtime import Device, DeviceArray, Event, HandleError, Stream
from .runtime.memory import contiguous_strides

_SIDE_ALIGNMENT = 16  # bytes, enough for vectors of any element


class NewArray:
    """The view of an output that is still to be made: of the call's own, so it overlaps nothing."""

    writeable = True
    span = (0, 0)
    address = gpu_address = 0

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.name, self.shape, self.dtype, self.strides = name, shape, dtype, contiguous_strides(shape)


def one_device(views: Sequence[ArrayView], sides: Iterable[ArrayView] = ()) -> Device | None:
    """The GPU on which all arrays are; None where all are on the host. Raises InvalidArgument for a mixture.

    `sides`, small inputs, may be on the host even so.
    """
    first = views[0]
    for x in (*views[1:], *(s for s in sides if s.device is not None)):
        if x.device != first.device:
            where = [f"{y.name} on {y.device or 'the host'}" for y in (first, x)]
            raise InvalidArgument(f"{' and '.join(where)}; all arrays must be in one place")
    return first.device


class Operands(contextlib.ExitStack):
    """Device addresses for the arrays of one call.

    On exit without an exception, host outputs are copied back, which waits for the work. Device memory
    of the call's own is freed in any case, in the order of the stream.

    Parameters
    ----------
    device : Device
        Where kernels run.
    stream : object
        The caller's stream, see :meth:`Stream.of`.
    on_host : bool
        Whether the caller's arrays are NumPy arrays.
    """

    def __init__(self, device: Device, stream: object, on_host: bool) -> None:
        super().__init__()
        self.device, self.on_host = device, on_host
        try:
            self.stream = Stream.of(device, stream)
        except HandleError as error:
            raise InvalidArgument(str(error)) from None

    def __enter__(self) -> Operands:
        super().__enter__()
        self.enter_context(self.device.active())
        return self

    def scratch(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        """Device memory that is freed when the call ends."""
        made = DeviceArray.empty(shape, dtype, self.device, self.stream)
        self.callback(made.buffer.free, self.stream)
        return made

    def input(self, view: ArrayView) -> int:
        """Device address of an input."""
        if view.device is not None:
            self._wait_for_producer(view)
            return view.address
        array = host_array(view)
        copy = self.scratch(array.shape, array.dtype)
        copy.copy_from(array, self.stream)
        return copy.address

    def side_inputs(self, views: Iterable[ArrayView]) -> dict[str, int]:
        """Device addresses of small inputs by name. Those on the host go up in one copy, which is not waited for."""
        addresses: dict[str, int] = {}
        on_host: list[tuple[int, ArrayView]] = []
        size = 0
        for x in views:
            if x.device is not None:
                addresses[x.name] = self.input(x)
            else:
                on_host.append((size, x))
                size = -(-(size + x.owner.nbytes) // _SIDE_ALIGNMENT) * _SIDE_ALIGNMENT
        if on_host:
            together = np.empty(size, np.uint8)  # pageable, whatever the caller's arrays are
            copy = self.scratch(together.shape, together.dtype)
            for at, x in on_host:
                together[at : at + x.owner.nbytes] = np.ascontiguousarray(x.owner).reshape(-1).view(np.uint8)
                addresses[x.name] = copy.address + at
            copy.copy_from(together, self.stream, wait=False)
        return addresses

    def _wait_for_producer(self, view: ArrayView) -> None:
        if view.producer_stream not in (None, self.stream.handle or 1):  # 0 and 1 are one stream
            ready = Event(self.device)
            self.callback(ready.close)
            ready.record(Stream(self.device, view.producer_stream))
            self.stream.wait(ready)

    def output(self, view: ArrayView | NewArray, partial: bool = False) -> tuple[int, Any]:
        """Device address of an output, and the array that the caller gets.

        With `partial`, kernels may leave elements out: on the host those keep their values, or are 0 in a new array.
        """
        if isinstance(view, ArrayView) and view.device is not None:
            self._wait_for_producer(view)
            return view.address, view.owner
        if not self.on_host:
            made = DeviceArray.empty(view.shape, view.dtype, self.device, self.stream)

            def discard(kind: type[BaseException] | None, *_: object) -> None:
                if kind is not None:
                    made.free()

            self.push(discard)
            return made.address, made
        result = view.owner if isinstance(view, ArrayView) else np.zeros(view.shape, view.dtype)
        copy = self.scratch(view.shape, view.dtype)
        if partial:
            copy.copy_from(result, self.stream)

        def fetch(kind: type[BaseException] | None, *_: object) -> None:
            if kind is None:
                result[...] = copy.to_numpy(stream=self.stream)

        self.push(fetch)
        return copy.address, result
