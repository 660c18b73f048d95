"""From the code of a kernel and the rates of a GPU to the time of a problem.

1. A quarter of an SM runs the kernel's blocks, alone and with as many others as fit, for two numbers of tiles
   (machine.py): what a tile takes, what a masked one, and what a block takes besides.
2. Blocks go to the SMs in the order of the grid (grid.py); one on an SM with k blocks advances as fast as step 1 says.
3. The time is the last block's end over the clock, or the bytes over the memory's bandwidth if that is longer, plus a
   node of a graph.

Nothing is fitted to a measured time.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cubins import kernel_info
from shapes import Shape

from flashcore_drv.catalog import HEADS_FIRST, KernelSpec
from flashcore_drv.images import build_folder
from flashcore_drv.plan import ROWS_IN_FLIGHT
from flashcore_drv.schedule import heads_in_a_group

from . import sass
from .gpus import LAUNCH_US, Gpu
from .grid import Block, last_end
from .machine import QUARTERS, pipe_cycles, simulate

FEW, MORE = 3, 9  # tiles of the two blocks that are simulated

COUNTED = ("HMMA", "LDSM", "MUFU", "FFMA", "FADD", "FMUL", "FMNMX", "F2FP", "IMAD", "LOP3", "LDGSTS", "BAR", "BRA")
"""Instructions that the table names."""


@dataclass(frozen=True)
class Resources:
    """What a block needs, and how many of them an SM holds."""

    registers: int
    threads: int
    shared_bytes: int
    blocks_an_sm: int
    bound_by: str


@dataclass(frozen=True)
class Rates:
    """Cycles of a block that shares its SM with others: for a tile, a masked tile, and everything else."""

    tile: float
    masked: float
    rest: float


class KernelModel:
    """A fused kernel on a GPU.

    Parameters
    ----------
    spec : KernelSpec
        Of the catalog.
    gpu : Gpu
        Its cubin must be built (``make cubin ARCHS=...``).
    """

    def __init__(self, spec: KernelSpec, gpu: Gpu) -> None:
        self.spec, self.gpu = spec, gpu
        cubin = built(f"cubin/sm_{gpu.arch}/{spec.stem}.cubin", gpu.arch)
        info = kernel_info(built(f"ptx/{spec.stem}.ptx", gpu.arch).read_text(), spec.stem)
        self.head_dim = int(spec.size[1:])
        self.threads, self.rows = int(info["threads"]), int(info["tile_rows"])
        try:
            self.code = sass.kernel_code(
                sass.disassemble(cubin), threads=self.threads, rows=self.rows, head_dim=self.head_dim
            )
        except ValueError as error:
            raise ValueError(f"{cubin}: {error}") from error
        manifest = json.loads(built(f"cubin/sm_{gpu.arch}/manifest.json", gpu.arch).read_text())
        (row,) = (x for x in manifest["kernels"] if x["stem"] == spec.stem)
        self.nvcc = manifest["nvcc"]
        self.resources = self._resources(row["registers"], int(info["shared_bytes"]))

    def _resources(self, registers: int, shared: int) -> Resources:
        sm = self.gpu.limits
        a_warp = -(-registers * 32 // 256) * 256  # registers are given to warps in units of 256
        fits = {
            "registers": sm.registers_per_multiprocessor // (a_warp * self.threads // 32),
            "shared memory": sm.shared_per_multiprocessor // (shared + sm.shared_reserved_per_block),
            "threads": sm.max_threads_per_multiprocessor // self.threads,
            "blocks": sm.max_blocks_per_multiprocessor,
        }
        least = min(fits.values())
        bound = " and ".join(name for name, blocks in fits.items() if blocks == least)
        return Resources(registers, self.threads, shared, least, bound)

    def tile_counts(self) -> Counter[str]:
        """Instructions of a warp for a tile in the steady state, by name."""
        return Counter(x.name for x in self.code.tile)

    @functools.cached_property
    def tile_cycles(self) -> dict[str, float]:
        """Cycles that each pipe of an SM is busy for a tile of every block that the SM holds."""
        warps = self.resources.blocks_an_sm * self.threads // 32
        return pipe_cycles(self.code.tile, self.gpu, warps)

    @functools.cached_property
    def rates(self) -> list[Rates]:
        """For 1, 2 ... blocks on an SM."""
        found = []
        for blocks in range(1, self.resources.blocks_an_sm + 1):
            few, more, masks = (self._simulated(blocks, n, m) for n, m in ((FEW, 0), (MORE, 0), (FEW, MORE - FEW)))
            tile, masked = (more - few) / (MORE - FEW), (masks - few) / (MORE - FEW)
            found.append(Rates(tile, masked, few - FEW * tile))
        return found

    def _simulated(self, blocks: int, tiles: int, masked: int) -> float:
        c = self.code
        code = (*c.prologue, *c.first, *c.masked * masked, *c.tile * tiles, *c.epilogue)
        return simulate(code, self.gpu, blocks * self.threads // 32 // QUARTERS)

    def blocks(self, shape: Shape, causal: bool) -> Iterator[Block]:
        """The blocks of a problem, in the order of the grid."""
        diagonal = shape.seqlen_k - shape.seqlen_q
        for row_block in self._row_blocks(shape):
            first = row_block * self.rows
            last = min(first + self.rows, shape.seqlen_q) - 1
            seen, seen_by_all = (
                min(shape.seqlen_k, max(0, row + diagonal + 1)) if causal else shape.seqlen_k for row in (last, first)
            )
            tiles = -(-seen // self.code.keys)
            yield tiles, tiles - seen_by_all // self.code.keys

    def _row_blocks(self, shape: Shape) -> Iterator[int]:
        """Of which rows each block is, as ``plan_flash`` lays out the grid."""
        row_blocks = -(-shape.seqlen_q // self.rows)
        heads = shape.batch * shape.heads
        if self.spec.family not in HEADS_FIRST:
            yield from (i % row_blocks for i in range(heads * row_blocks))
            return
        least = max(1, self.gpu.multiprocessors // ROWS_IN_FLIGHT)
        group = heads_in_a_group(shape.problem, least, self.gpu.l2_bytes)
        for _ in range(heads // group):
            yield from (row_blocks - 1 - i // group for i in range(group * row_blocks))

    def block_cycles(self, block: Block, together: int) -> float:
        """Cycles of a block among `together` on its SM."""
        tiles, masked = block
        rates = self.rates[together - 1]
        masked = max(masked - 1, 0)  # the first tile is among the rest
        return rates.rest + masked * rates.masked + max(tiles - self.code.rounds_less - 1 - masked, 0) * rates.tile

    def predict(self, shape: Shape, causal: bool) -> dict[str, Any]:
        """A problem: cycles until its last block's end, microseconds at every clock of the GPU, and what binds."""
        gpu, slots = self.gpu, self.resources.blocks_an_sm
        cycles = last_end(self.blocks(shape, causal), gpu.multiprocessors, slots, self.block_cycles)
        nbytes = 2 * sum(math.prod(dims) for dims in shape.dims.values())
        memory_us = nbytes / gpu.dram_gbs / 1e3
        blocks = shape.batch * shape.heads * -(-shape.seqlen_q // self.rows)
        us = {name: round(max(cycles / ghz / 1e3, memory_us) + LAUNCH_US, 2) for name, ghz in gpu.clocks.items()}
        flop = 4 * shape.batch * shape.heads * shape.seqlen_q * shape.seqlen_k * shape.head_dim / (2 if causal else 1)
        return {
            "problem": str(shape),
            "causal": causal,
            "stem": self.spec.stem,
            "blocks": blocks,
            "waves": round(blocks / gpu.multiprocessors / slots, 2),
            "cycles": round(cycles),
            "memory_us": round(memory_us, 2),
            "binds": self.binds() if cycles / max(gpu.clocks.values()) / 1e3 > memory_us else "DRAM",
            "us": us,
            "tflops": {name: round(flop / x / 1e6, 1) for name, x in us.items()},
        }

    def binds(self) -> str:
        """The pipe that is busy longest in the steady state."""
        return max(self.tile_cycles, key=lambda pipe: self.tile_cycles[pipe])

    def to_json(self) -> dict[str, Any]:
        """The kernel on the GPU: resources, counts and cycles of a tile."""
        counts = self.tile_counts()
        slots = self.resources.blocks_an_sm
        return {
            "stem": self.spec.stem,
            **asdict(self.resources),
            "tile": f"{self.rows} x {self.code.keys}",
            "counts": {name: counts[name] for name in COUNTED},
            "instructions": len(self.code.tile),
            "pipe_cycles": {pipe: round(x) for pipe, x in self.tile_cycles.items()},
            "binds": self.binds(),
            "simulated_cycles": round(self.rates[slots - 1].tile),
            "simulated_cycles_alone": round(self.rates[0].tile),
            "besides_cycles": round(self.rates[slots - 1].rest),
        }


def built(name: str, arch: int) -> Path:
    """A file that the build makes. Raises FileNotFoundError with the command that makes it."""
    path = build_folder() / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; build it: make cubin ARCHS={arch}")
    return path
