"""Seconds of attention on the emulator, every check on: the host's time, not a GPU's."""

from __future__ import annotations

import time

import numpy as np

import flashcore_drv as fc
from flashcore_drv.dtypes import F16

from .cases import Case
from .conditions import SEED
from .results import Json
from .suites import Run, table

NEEDS = "emulator"
PACKAGES = ()
METHOD = {
    "timing": "wall time of one call on NumPy arrays, least of three; the first also parses the PTX",
    "checks": "all that are on by default: races, bounds, alignment, uninitialised reads, divergence",
}
CALLS = 3
# (batch, heads, seqlen, head_dim), the implementation, and the seconds that the emulator may take
TARGETS = (
    ((1, 2, 128, 64), "unfused", 0.3),
    ((1, 2, 128, 64), "flash", 0.3),
    ((1, 8, 512, 64), "unfused", 15.0),
    ((1, 8, 512, 64), "flash", 8.0),
)


def name_of(size: tuple[int, int, int, int], impl: str) -> str:
    """The row's id."""
    return "b{}-h{}-s{}-d{}".format(*size) + f"-{impl}"


def ids(quick: bool) -> list[str]:
    """The rows."""
    return [name_of(size, impl) for size, impl, _ in TARGETS]


def run(run: Run) -> None:
    """Time the calls that are wanted."""
    targets = {name_of(size, impl): (size, impl, limit) for size, impl, limit in TARGETS}
    for name in run.progress(run.wanted(ids(run.quick))):
        (batch, heads, seqlen, head_dim), impl, limit = targets[name]
        case = Case(name, batch, heads, heads, seqlen, seqlen, head_dim, False, F16)
        rng = np.random.default_rng(SEED)
        q, k, v = (rng.standard_normal(case.shapes[x], np.float32).astype(np.float16) for x in "qkv")
        seconds = []
        for _ in range(CALLS):
            start = time.perf_counter()
            fc.attention(q, k, v, layout="bhsd", impl=impl)
            seconds.append(time.perf_counter() - start)
        row = {"id": name, "problem": case.to_json(), "impl": impl, "first_seconds": seconds[0]}
        run.record.add(row | {"seconds": min(seconds), "target_seconds": limit})


def lines(found: Json) -> list[str]:
    """The table."""
    rows = [
        [row["id"], f"{row['seconds']:.2f}", f"{row['first_seconds']:.2f}", f"{row['target_seconds']:.1f}"]
        for row in found["rows"]
    ]
    return [f"emulator on {found['conditions']['cpu']}", "", *table(["call", "seconds", "first", "target"], rows)]
