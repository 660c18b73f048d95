"""Which of the kernels that solve a problem is the fastest: by waves of blocks, with the constants of the GPU.

A grid runs in waves: all but the last have as many blocks on every SM as fit, `n` at once, the last those that are
left. These do not spread evenly: an SM whose blocks end together gets as many new ones and others get none, so that the
last wave lasts as if there were `crowding` times as many. The time of a kernel is, up to what every launch costs, the
sum over its waves of

    start + start_each · n + keys · (key + key_each · n)

where `keys` are those of whole tiles, `start` and `key` what a block takes however few there are (its chain of waits),
and `start_each` and `key_each` what every block takes from the others. ``scripts/tune.py`` fits these constants for
each kernel on a GPU and writes them to ``tuned/<gpu>.json``. GPUs without a table get those of :data:`FALLBACK`, of
which only ratios count, with as many blocks on an SM as their own registers and shared memory allow
(``tuned/kernels.json``).
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from .catalog import HOPPER, head_dims
from .problem import Problem
from .schedule import busiest, tile_schedule

FOLDER = Path(__file__).parent / "tuned"

ALTERNATIVES = {
    "flash_fwd": ("flash_fwd", "flash_fwd_small"),
    "flash_fwd_tma": ("flash_fwd_tma", "flash_fwd_tma_short", "flash_fwd_tma_few", "flash_fwd_small"),
    "flash_fwd_tma_causal": ("flash_fwd_tma_causal", "flash_fwd_tma_causal_short", "flash_fwd_tma_causal_few"),
}
"""Families that solve what a family solves, up to the order in which they add, and may be faster."""


class Gpu(Protocol):
    """What the choice depends on: a :class:`flashcore_drv.Device`, or a :class:`GpuModel`."""

    @property
    def name(self) -> str:
        """For example ``NVIDIA H200``."""

    @property
    def multiprocessors(self) -> int:
        """Number of SMs."""


@dataclass(frozen=True)
class GpuModel:
    """A GPU that need not be there."""

    name: str = ""
    multiprocessors: int = 1


UNKNOWN_GPU = GpuModel()


@dataclass(frozen=True)
class WaveCost:
    """The constants of a kernel: its tile, blocks that an SM holds at once, crowding, and times (any unit).

    Of a `persistent` one the busiest SM is counted (:mod:`flashcore_drv.schedule`), and there are no waves: `start` is
    what the first row block takes, `start_each` every one, and `key_each` what its warpgroups take if all have rows.
    """

    rows: int
    keys: int
    blocks_an_sm: int
    crowding: int
    start: float
    start_each: float
    key: float
    key_each: float
    persistent: bool = False

    def waves(self, problem: Problem, multiprocessors: int) -> tuple[int, int]:
        """Full waves, and blocks an SM where most are in the one after them (0: there is none)."""
        blocks = -(-problem.seqlen_q // self.rows) * problem.batch * problem.num_heads
        full, rest = divmod(blocks, multiprocessors * self.blocks_an_sm)
        crowded = rest * self.crowding if full else rest  # an idle GPU is filled evenly
        return full, min(-(-crowded // multiprocessors), self.blocks_an_sm)

    def time(self, problem: Problem, multiprocessors: int) -> float:
        """Of the problem, without what a launch costs, in the unit of the constants."""
        if self.persistent:
            schedule = tile_schedule(problem, self.rows, multiprocessors, _HOPPER_L2)
            work = busiest(problem, schedule, self.rows, multiprocessors, self.keys)
            each = self.start_each * work.blocks + self.key * work.keys + self.key_each * work.shares
            return self.start + each
        full, last = self.waves(problem, multiprocessors)
        waves, blocks = full + (last > 0), full * self.blocks_an_sm + last
        start, key = self.start * waves + self.start_each * blocks, self.key * waves + self.key_each * blocks
        return start + -(-problem.seqlen_k // self.keys) * self.keys * key


_HOPPER_L2 = 50 << 20  # bytes


def alternatives(family: str, head_dim: int) -> tuple[str, ...]:
    """The families among which the fastest is chosen in the place of `family`, itself first."""
    return tuple(f for f in ALTERNATIVES.get(family, (family,)) if head_dim in head_dims(f))


def contested(family: str) -> tuple[int, ...]:
    """The head_dims for which a family of ALTERNATIVES has another beside it."""
    return tuple(d for d in head_dims(family) if len(alternatives(family, d)) > 1)


def is_measured(family: str, head_dim: int, arch: int, gpu: Gpu) -> bool:
    """Whether there are constants to compare `family` with its alternatives by."""
    return bool(_costs(family, head_dim, arch, gpu))


def _costs(family: str, head_dim: int, arch: int, gpu: Gpu) -> dict[str, WaveCost]:
    """The constants of the alternatives, by family: of the GPU's table, or of the model; none where one lacks."""
    names = {f: f"{f}_d{head_dim}" for f in alternatives(family, head_dim)}
    for costs in (table(gpu.name) or {}, model(arch)):
        if costs.keys() >= set(names.values()):
            return {f: costs[name] for f, name in names.items()}
    return {}


def fastest(family: str, head_dim: int, problem: Problem, arch: int, gpu: Gpu, besides: str = "") -> str:
    """The family to take in the place of `family`: a pure function of its arguments and of the package's data.

    Parameters
    ----------
    family : str
        That solves the problem.
    head_dim : int
        Of the kernel.
    problem : Problem
        Not batch-invariant: the choice depends on batch and heads, and the order of addition on the choice.
    arch : int
        Compute capability of the GPU: 90 stands for 9.0.
    gpu : Gpu
        Whose table is looked up by its name.
    besides : str
        A family that is not to be taken.

    Returns
    -------
    str
        `family` itself where another was never measured.
    """
    families = alternatives(family, head_dim)
    if len(families) == 1:
        return family
    costs = _costs(family, head_dim, arch, gpu)
    return min(
        sorted(costs.keys() - {besides}), key=lambda f: costs[f].time(problem, gpu.multiprocessors), default=family
    )


def file_name(gpu_name: str) -> str:
    """Of the table of a GPU model, and of its folder in ``benchmarks/``, without an ending: ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", gpu_name.lower()).strip("-")


@functools.cache
def table(gpu_name: str) -> dict[str, WaveCost] | None:
    """The measured constants (µs) of the kernels on a GPU model, by family and size; None for a GPU without a table."""
    path = FOLDER / f"{file_name(gpu_name)}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text())
    return costs_from(found["kernels"]) if found.get("gpu") == gpu_name else None


def costs_from(kernels: dict[str, dict[str, Any]]) -> dict[str, WaveCost]:
    """The member "kernels" of a table."""
    return {name: WaveCost(**constants) for name, constants in kernels.items()}


# ---- GPUs without a table

FALLBACK = "NVIDIA H200"

SHARED_KB = {80: 164, 87: 164, 90: 228, 100: 228, 103: 228, 110: 228}
"""Shared memory of an SM by compute capability (CUDA C++ Programming Guide, "Technical Specifications")."""

SHARED_KB_ELSEWHERE = 100
_RESERVED_KB = 1  # of every block, by the driver
_REGISTERS = 65536  # of an SM


@functools.cache
def model(arch: int) -> dict[str, WaveCost]:
    """The constants for a GPU of this compute capability without a table."""
    return adapted(table(FALLBACK) or {}, arch)


def adapted(costs: dict[str, WaveCost], arch: int) -> dict[str, WaveCost]:
    """The constants of another GPU with the blocks that an SM of this compute capability holds.

    SMs with Hopper's own instructions are all alike: kernels of these keep what they have, and are nowhere else.
    """
    facts = json.loads((FOLDER / "kernels.json").read_text())
    found = {}
    for name, cost in costs.items():
        if name in facts:
            found[name] = replace(cost, blocks_an_sm=blocks_an_sm(arch, **facts[name]))
        elif arch == HOPPER:
            found[name] = cost
    return found


def blocks_an_sm(arch: int, *, threads: int, registers: int, shared_bytes: int, **_: int) -> int:
    """Blocks that fit an SM at once (a warp's registers come in units of 256)."""
    by_registers = _REGISTERS // (-(-registers * 32 // 256) * 256 * (threads // 32))
    by_shared = (SHARED_KB.get(arch, SHARED_KB_ELSEWHERE) << 10) // (shared_bytes + (_RESERVED_KB << 10))
    return max(1, min(by_registers, by_shared))
