"""Compiled kernels: loading an image, finding a kernel in it, launching it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import driver
from .device import Device
from .errors import HandleError
from .stream import Stream
from .tensor_map import MAP_ALIGNMENT, MAP_BYTES, TensorMap


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


_NO_MAPS: Mapping[int, TensorMap] = {}


class Launch:
    """One launch of a kernel, made ready once: the parameter block, the pointer table and the configuration.

    The driver copies the parameters before the call returns, so a block may be changed between launches, but not by
    two threads at once: :meth:`twin` makes another.

    Parameters
    ----------
    kernel : Kernel
        What to launch.
    blocks, threads : int
        gridDim.x, and the size of a block.
    params : bytes
        The struct that it takes.
    groups : int
        gridDim.y.
    tensor_maps : mapping of int to TensorMap
        Those in the parameters, by their offset there, a multiple of 64.
    dependent : bool
        Let it begin before the kernel before it in its stream, or graph, has ended, for which it waits itself (CUDA C++
        Programming Guide, "Programmatic Dependent Launch and Synchronization"). Of a kernel that does, on compute
        capability 9.0 or later.

    Attributes
    ----------
    words : memoryview of uint64
        The parameters, to store pointers in; they start on 64 bytes.
    table : int
        Address of the table that points at the parameters, as the driver takes it.
    configs : dict of int to CUlaunchConfig
        By stream, shared by twins: to change one costs more than all else here.
    """

    def __init__(
        self,
        kernel: Kernel,
        blocks: int,
        threads: int,
        params: bytes,
        groups: int = 1,
        tensor_maps: Mapping[int, TensorMap] = _NO_MAPS,
        dependent: bool = False,
    ) -> None:
        self.kernel, self.blocks, self.groups, self.threads = kernel, blocks, groups, threads
        self.dependent = dependent
        self.configs: dict[int | None, Any] = {}
        self._bytes, self._tensor_maps = len(params), tensor_maps
        self._place(params + bytes(-len(params) % 8))

    def _place(self, params: bytes | memoryview[int]) -> None:
        words = memoryview(params).cast("B").cast("Q")
        memory = array("Q", bytes(words.nbytes + MAP_ALIGNMENT))
        skipped = -memory.buffer_info()[0] % MAP_ALIGNMENT
        self.words = memoryview(memory)[skipped // 8 : skipped // 8 + len(words)]
        self.words[:] = words
        self._table = array("Q", (memory.buffer_info()[0] + skipped,))
        # a plain int: an np.uint64 would be taken as a buffer, and the launch would read wrong bytes without an error
        self.table = self._table.buffer_info()[0]

    @property
    def params(self) -> npt.NDArray[np.uint8]:
        """The bytes of the parameters, to read and write."""
        return np.frombuffer(self.words, np.uint8)[: self._bytes]

    def twin(self) -> Launch:
        """The same launch with a parameter block of its own."""
        made = object.__new__(Launch)
        made.kernel, made.blocks, made.groups, made.threads = self.kernel, self.blocks, self.groups, self.threads
        made.dependent = self.dependent
        made.configs, made._bytes, made._tensor_maps = self.configs, self._bytes, self._tensor_maps
        made._place(self.words)
        return made

    def place_maps(self, addresses: Sequence[int]) -> None:
        """Make the tensor maps those of the tensors at these addresses, in the order of `tensor_maps`.

        Raises
        ------
        DriverError
            If the driver refuses one; the parameters are then of no use.
        """
        for (at, tensor), address in zip(self._tensor_maps.items(), addresses):
            tensor.place(self.kernel.device, address, self.words[at // 8 : (at + MAP_BYTES) // 8])

    @property
    def map_words(self) -> tuple[int, ...]:
        """The words of the parameters that are tensor maps."""
        return tuple(at // 8 + i for at in self._tensor_maps for i in range(MAP_BYTES // 8))

    def __call__(self, stream: Stream) -> None:
        """Queue the launch."""
        self.queue_function()(self, stream.handle)

    def queue_function(self) -> Callable[[Launch, int | None], None]:
        """A function that queues this launch or a twin of it in a ``CUstream``, None for a closed one.

        What it needs it has in cells of its own, so that it takes little more time than the driver's call. No context
        need be current, but it takes less where the device's is. That is found out by the launch, because to ask first
        takes 0.3 µs: one that fails for its context does nothing and is made again with the right one.
        """
        module, function, configs = driver.module(), self.kernel.handle, self.configs
        success, device, configured = module.CUresult.CUDA_SUCCESS, self.kernel.device, self.configured

        def queue(launch: Launch, stream: int | None) -> None:
            if driver.forked:
                raise driver.fork_refusal()
            config = configs.get(stream) or configured(stream)
            status = module.cuLaunchKernelEx(config, function, launch.table, 0)[0]
            if status is not success:
                driver.retry(device, status, "cuLaunchKernelEx", config, function, launch.table, 0)

        return queue

    def configured(self, stream: int | None) -> Any:
        """A new configuration for a ``CUstream``, which threads share: nothing writes to it any more."""
        if stream is None:
            raise HandleError("stream: used after close()")
        config = driver.module().CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = self.blocks, self.groups, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes = self.kernel.dynamic_shared_bytes
        config.hStream = stream
        if self.dependent:
            attribute = driver.module().CUlaunchAttribute()
            kinds = driver.module().CUlaunchAttributeID
            attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        if len(self.configs) >= _MAX_STREAMS:
            self.configs.clear()
        self.configs[stream] = config
        return config


_MAX_STREAMS = 64  # whose configurations a launch keeps
