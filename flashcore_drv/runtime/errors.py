"""Errors of the CUDA driver, and of handles that this package owns."""

from __future__ import annotations

_REMEDIES = {
    "CUDA_ERROR_OUT_OF_MEMORY": "free device memory or use a smaller problem",
    "CUDA_ERROR_NO_DEVICE": "no GPU is visible: check CUDA_VISIBLE_DEVICES and nvidia-smi",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": 'the kernel was built for another GPU: rebuild with make cubin ARCHS="<arch>"',
    "CUDA_ERROR_INVALID_IMAGE": "the kernel file is damaged or newer than the driver: rebuild with make cubin",
    "CUDA_ERROR_INVALID_PTX": "the kernel file is damaged: rebuild with make cubin",
    "CUDA_ERROR_NOT_FOUND": "the kernel file is of another kernel: rebuild with make cubin",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the PTX is newer than the driver: update the driver or build a cubin",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel touched memory it does not own; the context is lost: restart the process",
    "CUDA_ERROR_LAUNCH_FAILED": "a kernel crashed; the context is lost: restart the process",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": "a kernel crashed; the context is lost: restart the process",
    "CUDA_ERROR_MISALIGNED_ADDRESS": "a kernel read or wrote at a wrong address; the context is lost: restart the "
    "process",
    "CUDA_ERROR_LAUNCH_TIMEOUT": "a kernel took too long; the context is lost: restart the process",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory is faulty; the context is lost: restart the process, see "
    "nvidia-smi -q -d ECC",
    "CUDA_ERROR_NOT_INITIALIZED": "a fork after CUDA was initialised cannot use it: start workers with spawn",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": "the primary context was reset by other code in this process",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": "this call cannot be captured into a graph: make it before the capture",
}


class DriverError(RuntimeError):
    """A call of the CUDA driver failed.

    Attributes
    ----------
    call : str
        The driver's function, for example ``cuMemAllocAsync``.
    name : str
        The driver's error name, for example ``CUDA_ERROR_OUT_OF_MEMORY``.
    code : int
        Its number.
    """

    def __init__(self, call: str, name: str, code: int, text: str, detail: str = "") -> None:
        self.call, self.name, self.code = call, name, code
        remedy = _REMEDIES.get(name)
        message = f"{call} failed: {name} ({code}): {text}"
        message += f"; {detail}" if detail else ""
        super().__init__(f"{message}. Remedy: {remedy}" if remedy else message)


class OutOfMemory(DriverError):
    """The GPU's memory does not suffice. What the call had allocated is freed, and everything else works on."""


class LaunchError(DriverError):
    """A launch that the driver refused. Nothing was queued, and everything works on."""


class ImageRefused(DriverError):
    """A kernel's file that the driver does not load: damaged, for another GPU, or newer than the driver."""


class ContextLost(DriverError):
    """A kernel, of whoever in this process, failed: the driver refuses all further work on this GPU's memory.

    Every later call raises it as well. The remedy is another process.
    """


def kind_of(call: str, code: int) -> type[DriverError]:
    """The class of the error that a driver function reports with this code."""
    if code in _LOST:
        return ContextLost
    if code == 2:  # CUDA_ERROR_OUT_OF_MEMORY
        return OutOfMemory
    if call.startswith("cuModule"):
        return ImageRefused
    return LaunchError if call.startswith(("cuLaunch", "cuGraphLaunch")) else DriverError


# ECC_UNCORRECTABLE, ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, CONTEXT_IS_DESTROYED, ASSERT, HARDWARE_STACK_ERROR,
# ILLEGAL_INSTRUCTION, MISALIGNED_ADDRESS, INVALID_ADDRESS_SPACE, INVALID_PC, LAUNCH_FAILED
_LOST = (214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719)


class NoDriverError(RuntimeError):
    """The CUDA driver is asked for and cannot be had on this machine."""


class DriverTooOld(NoDriverError):
    """The CUDA driver is there and older than the kernels."""


class HandleError(RuntimeError):
    """A buffer, stream or event that was freed, or that belongs to another device."""
