"""The one way to the driver: a module with the functions of ``cuda.bindings.driver``.

``FLASHCORE_DRIVER`` chooses it: ``cuda``, ``emulator`` (the same functions over a PTX interpreter, no GPU) or ``auto``,
the default: CUDA where a driver answers, else the emulator, which is said once.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from typing import Any

from .errors import DriverError, DriverTooOld, NoDriverError, kind_of

_OF_THE_KERNEL = (218, *range(700, 721))  # CUDA_ERROR_INVALID_PTX; ILLEGAL_ADDRESS to COOPERATIVE_LAUNCH_TOO_LARGE
_OF_THE_CONTEXT = (201, 400)  # CUDA_ERROR_INVALID_CONTEXT: none or a wrong one; INVALID_HANDLE: of another context
_OLDEST = 13000  # CUDA 13.0: a driver loads cubins of its own major version, and of those before
_CHOICES = ("auto", "cuda", "emulator")
_initialised = False
forked = False
"""Whether this process was forked from one that had initialised the driver, which is of no use to it."""


def _after_fork() -> None:
    global forked
    forked = _initialised


os.register_at_fork(after_in_child=_after_fork)


def _cuda() -> Any | None:
    """``cuda.bindings.driver`` with the driver initialised; None where there is none, or no GPU."""
    module = importlib.import_module("cuda.bindings.driver")
    try:
        result = module.cuInit(0)[0]
    except RuntimeError:  # no libcuda.so.1
        return None
    if result in (module.CUresult.CUDA_ERROR_NO_DEVICE, module.CUresult.CUDA_ERROR_STUB_LIBRARY):
        return None
    if result != module.CUresult.CUDA_SUCCESS:
        raise error_of(module, "cuInit", result)
    return module


@functools.lru_cache(maxsize=1)
def module() -> Any:
    """The driver module in use, initialised.

    Raises
    ------
    NoDriverError
        If ``FLASHCORE_DRIVER=cuda`` and there is no driver or no GPU.
    DriverTooOld
        If the driver is older than the kernels.
    """
    global _initialised
    choice = os.environ.get("FLASHCORE_DRIVER", "auto")
    if choice not in _CHOICES:
        raise NoDriverError(f"FLASHCORE_DRIVER={choice}; allowed: {', '.join(_CHOICES)}")
    found = None if choice == "emulator" else _cuda()
    if found is None and choice == "cuda":
        raise NoDriverError(
            "FLASHCORE_DRIVER=cuda, but libcuda.so.1 is not there or shows no GPU: install NVIDIA's driver, check "
            "nvidia-smi and CUDA_VISIBLE_DEVICES, or set FLASHCORE_DRIVER=emulator"
        )
    if found is None:
        found = importlib.import_module("flashcore_drv.emulator.driver")
        found.cuInit(0)
        if choice == "auto":
            print("flashcore_drv: no CUDA driver or GPU here; kernels run in the emulator (slow)", file=sys.stderr)
    _, version = found.cuDriverGetVersion()
    if version < _OLDEST:
        have, need = (f"{x // 1000}.{x % 1000 // 10}" for x in (version, _OLDEST))
        raise DriverTooOld(f"the CUDA driver is for CUDA {have}; needed: {need} or later. Update NVIDIA's driver")
    _initialised = True
    return found


def is_emulated() -> bool:
    """Whether kernels run in the emulator."""
    return bool(module().__name__.startswith("flashcore_drv."))


def call(name: str, *args: Any) -> Any:
    """Call a driver function; its results without the status (None, one value or a tuple).

    Raises
    ------
    DriverError
        If the driver reports anything but success.
    NoDriverError
        In a process forked from one that had initialised the driver.
    """
    driver = module()
    if forked:
        raise fork_refusal()
    status, *results = getattr(driver, name)(*args)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise error_of(driver, name, status)
    return None if not results else results[0] if len(results) == 1 else tuple(results)


def retry(device: Any, status: Any, name: str, *args: Any) -> None:
    """Call a driver function again that returned `status`, with the context of `device` if that was what it lacked.

    Raises
    ------
    DriverError
        If the first call failed for anything else, or the second one fails.
    """
    if int(status) not in _OF_THE_CONTEXT:
        raise error_of(module(), name, status)
    with device.active():
        call(name, *args)


def fork_refusal() -> NoDriverError:
    """What a forked process gets."""
    return NoDriverError("CUDA was initialised before this process was forked; start worker processes with spawn")


def error_of(driver: Any, name: str, status: Any) -> DriverError:
    """The error of a driver function that returned `status`."""

    def text(function: str) -> str:
        _, found = getattr(driver, function)(status)
        return found.decode() if isinstance(found, bytes) else str(found)

    # The emulator can say what a kernel did, or what is wrong with a module; other failures are not of its making.
    last_error = getattr(driver, "last_error", None)
    detail = last_error() if last_error and int(status) in _OF_THE_KERNEL else None
    return kind_of(name, int(status))(
        name, text("cuGetErrorName"), int(status), text("cuGetErrorString"), str(detail) if detail else ""
    )
