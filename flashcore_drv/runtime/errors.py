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


class NoDriverError(RuntimeError):
    """The CUDA driver is asked for and cannot be had on this machine."""


class HandleError(RuntimeError):
    """A buffer, stream or event that was freed, or that belongs to another device."""
