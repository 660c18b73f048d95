"""Compiled kernels: loading an image, finding a kernel in it, launching it."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from . import driver
from .device import Device
from .stream import Stream


class Module:
    """A loaded kernel image: a cubin, or PTX on the emulator."""

    def __init__(self, device: Device, image: bytes) -> None:
        self.device = device
        with device.active():
            self.handle = driver.call("cuModuleLoadData", image)

    def read_global(self, name: str) -> bytes:
        """The bytes of a variable of the module. Raises DriverError if it is not there."""
        with self.device.active():
            pointer, nbytes = driver.call("cuModuleGetGlobal", self.handle, name.encode())
            data = np.empty(nbytes, np.uint8)
            driver.call("cuMemcpyDtoH", data.__array_interface__["data"][0], pointer, nbytes)
        return data.tobytes()

    def kernel(self, name: str, dynamic_shared_bytes: int) -> Kernel:
        """A kernel of the module that is always launched with this much dynamic shared memory."""
        return Kernel(self, name, dynamic_shared_bytes)


class Kernel:
    """A kernel that takes one struct by value.

    Its limit of dynamic shared memory is raised here, once: the limit is state of the function, which a change at
    every launch would make a race between threads.
    """

    def __init__(self, module: Module, name: str, dynamic_shared_bytes: int) -> None:
        self.module, self.name, self.dynamic_shared_bytes = module, name, dynamic_shared_bytes
        self.device = module.device
        with self.device.active():
            self.handle = driver.call("cuModuleGetFunction", module.handle, name.encode())
            attribute = driver.module().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            driver.call("cuFuncSetAttribute", self.handle, attribute, dynamic_shared_bytes)

    @property
    def parameter_bytes(self) -> int:
        """Size of the parameter struct in the loaded image.

        Asking past the last parameter, to see that there is one only, would be an error of the driver that tools such
        as compute-sanitizer report.
        """
        with self.device.active():
            _, size = driver.call("cuFuncGetParamInfo", self.handle, 0)
        return int(size)

    def attribute(self, name: str) -> int:
        """A function attribute by its name without ``CU_FUNC_ATTRIBUTE_``, for example ``NUM_REGS``."""
        enum = driver.module().CUfunction_attribute
        with self.device.active():
            return int(driver.call("cuFuncGetAttribute", getattr(enum, f"CU_FUNC_ATTRIBUTE_{name}"), self.handle))


class Launch:
    """One launch of a kernel, made ready once: the parameter block, the pointer table and the configuration.

    The driver copies the parameters before the call returns, so a block may be changed between launches, but not by
    two threads at once: :meth:`twin` makes another.

    Attributes
    ----------
    words : array of uint64
        The parameters, to store pointers in.
    params : numpy.ndarray of uint8
        The same bytes.
    """

    def __init__(self, kernel: Kernel, blocks: int, threads: int, params: bytes) -> None:
        self.kernel, self.blocks, self.threads = kernel, blocks, threads
        self._configs: dict[int, Any] = {}  # by stream: to change one costs more than all else here
        self._place(params)

    def _place(self, params: bytes) -> None:
        self._driver = driver.module()
        self._success = self._driver.CUresult.CUDA_SUCCESS
        self._function = self.kernel.handle
        self.words = array("Q", params + bytes(-len(params) % 8))
        self.params = np.frombuffer(self.words, np.uint8)[: len(params)]
        self._table = array("Q", [self.words.buffer_info()[0]])
        # a plain int: an np.uint64 would be taken as a buffer, and the launch would read wrong bytes without an error
        self._table_address = self._table.buffer_info()[0]

    def twin(self) -> Launch:
        """The same launch with a parameter block of its own."""
        made = object.__new__(Launch)
        made.kernel, made.blocks, made.threads, made._configs = self.kernel, self.blocks, self.threads, self._configs
        made._place(self.params.tobytes())
        return made

    def __call__(self, stream: Stream) -> None:
        """Queue the launch."""
        self.queue(stream.handle)

    def queue(self, stream: int) -> None:
        """Queue the launch in a ``CUstream``.

        No context need be current, but it takes less time where the device's is. That is found out by the launch,
        because to ask first takes 0.3 µs: one that fails for its context does nothing and is made again with the right
        one.
        """
        if driver.forked:
            raise driver.fork_refusal()
        config = self._configs.get(stream) or self._configured(stream)
        status = self._driver.cuLaunchKernelEx(config, self._function, self._table_address, 0)[0]
        if status != self._success:
            if int(status) not in _OF_THE_CONTEXT:
                raise driver.error_of(self._driver, "cuLaunchKernelEx", status)
            with self.kernel.device.active():
                driver.call("cuLaunchKernelEx", config, self._function, self._table_address, 0)

    def _configured(self, stream: int) -> Any:
        """A configuration for a stream, which threads share: nothing writes to it any more."""
        config = self._driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = self.blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes = self.kernel.dynamic_shared_bytes
        config.hStream = stream
        if len(self._configs) >= _MAX_STREAMS:
            self._configs.clear()
        self._configs[stream] = config
        return config


_OF_THE_CONTEXT = (201, 400)  # CUDA_ERROR_INVALID_CONTEXT: none or a wrong one; INVALID_HANDLE: of another context
_MAX_STREAMS = 64  # whose configurations a launch keeps
