"""The functions of ``cuda.bindings.driver`` that a runtime needs, over the emulator instead of a GPU.

Names, arguments, return tuples and result codes are those of the bindings (cuda-bindings 13); enumerations, structures
and handle types are the bindings' own, so ``driver.CUresult`` is the same class whichever driver is chosen. Arguments
are as strict as the bindings': bytes where they want bytes, ``cuuint64_t`` where they want that.

Work is queued in streams and runs when a call waits for it (see :mod:`.queue`). The device says that it is emulated,
and event times are the host's.

Beside the driver's functions: :func:`reset`, :func:`inject`, :func:`memory_limit`, :func:`calls`, :func:`reports` and
:func:`last_error`.

Examples
--------
>>> from flashcore_drv.emulator import driver
>>> driver.reset(arch="sm_89")
>>> driver.cuInit(0)
(<CUresult.CUDA_SUCCESS: 0>,)
"""

from __future__ import annotations

from typing import Any

from cuda.bindings import driver as _bindings

from .. import EmulationError, Report
from . import devices, graphs, launch, memory, modules, streams
from .faults import Fault, calls, inject, memory_limit
from .process import API as _API
from .process import process as _process
from .process import reset

__all__ = ["Fault", "calls", "inject", "last_error", "memory_limit", "reports", "reset"]

_FAMILIES = (devices, graphs, launch, memory, modules, streams)  # their import fills the table of functions
globals().update(_API)


def last_error() -> EmulationError | None:
    """Return the emulator's account of what went wrong last: in a kernel, in a copy, or in the text of a module."""
    return _process().last_error


def reports() -> list[tuple[str, Report]]:
    """Return the reports of the last launches, oldest first, as (kernel name, report)."""
    state = _process()
    with state.lock:
        return list(state.reports)


def __getattr__(name: str) -> Any:
    if name.startswith(("CU", "cuuint")):
        return getattr(_bindings, name)
    raise AttributeError(f"the emulated driver has no {name!r}; driver functions are in flashcore_drv/emulator/driver/")
