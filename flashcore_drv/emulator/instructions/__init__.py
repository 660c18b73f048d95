"""The instructions of PTX, one small function each, by family. Importing this package fills the table."""

from __future__ import annotations

from flashcore_drv.emulator.instructions import (
    async_copy,
    barrier,
    compare,
    control,
    convert,
    floating,
    half,
    integer,
    matrix,
    mbarrier,
    move,
    register_pool,
    tma,
    warp,
    wgmma,
)
from flashcore_drv.emulator.instructions.table import Row, Site, find, unknown

__all__ = [
    "Row",
    "Site",
    "async_copy",
    "barrier",
    "compare",
    "control",
    "convert",
    "find",
    "floating",
    "half",
    "integer",
    "matrix",
    "mbarrier",
    "move",
    "register_pool",
    "tma",
    "unknown",
    "warp",
    "wgmma",
]
