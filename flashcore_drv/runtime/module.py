"""Compiled kernels: loading an image, finding a kernel in it, launching it."""

from __future__ import annotations

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
    two threads at once.
    """

    def __init__(self, kernel: Kernel, blocks: int, threads: int, params: bytes) -> None:
        self.kernel = kernel
        self.params = np.frombuffer(bytearray(params), np.uint8)
        self._table = np.array([self.params.__array_interface__["data"][0]], np.uint64)
        # a plain int: an np.uint64 would be taken as a buffer, and the launch would read wrong bytes without an error
        self._table_address = int(self._table.__array_interface__["data"][0])
        self._config: Any = driver.module().CUlaunchConfig()
        self._config.gridDimX, self._config.gridDimY, self._config.gridDimZ = blocks, 1, 1
        self._config.blockDimX, self._config.blockDimY, self._config.blockDimZ = threads, 1, 1
        self._config.sharedMemBytes = kernel.dynamic_shared_bytes

    def __call__(self, stream: Stream) -> None:
        """Queue the launch. The device's context must be current."""
        self._config.hStream = stream.handle
        driver.call("cuLaunchKernelEx", self._config, self.kernel.handle, self._table_address, 0)
