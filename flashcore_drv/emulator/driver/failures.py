"""What a kernel that is wrong looks like to the host: the emulator's account, and the code that a GPU would report."""

from __future__ import annotations

from typing import NoReturn

from cuda.bindings.driver import CUresult

from ..errors import EmulationError

_RESULTS: dict[str, CUresult] = {
    "out-of-bounds": CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
    "use-after-free": CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
    "memory": CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
    "misaligned": CUresult.CUDA_ERROR_MISALIGNED_ADDRESS,
    "unknown-instruction": CUresult.CUDA_ERROR_ILLEGAL_INSTRUCTION,
    "launch-limit": CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
    "deadlock": CUresult.CUDA_ERROR_LAUNCH_TIMEOUT,
    "watchdog": CUresult.CUDA_ERROR_LAUNCH_TIMEOUT,
}


def result_of(error: EmulationError) -> CUresult:
    """Return the code that an error of the device's work is reported with.

    What a GPU would not notice (a race, a read of uninitialised memory) is an unspecified launch failure.
    """
    return _RESULTS.get(error.kind, CUresult.CUDA_ERROR_LAUNCH_FAILED)


def account(message: str) -> NoReturn:
    """Fail as work that uses memory which is not there for it."""
    raise EmulationError("memory", message)
