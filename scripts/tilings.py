"""Tile configurations of the fused forward: which there are, which are refused and why, and which are built.

``cuda/flash_fwd/traits.cuh`` says what is built; :func:`built_tilings` asks the compiler for it. What is said here of a
tiling before it is built (shared memory, threads, rows) is compared with what the kernel says of itself afterwards.
"""

from __future__ import annotations

import collections
import itertools
import operator
import re
import subprocess
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from cubins import BUILD, NVCC_FLAGS, ROOT, write_if_changed

from flashcore_drv.catalog import FLASH_VARIANTS

SCHEDULES = ("straight", "pipelined", "paired")

SHARED_BYTES = 99 << 10  # of a block, on the archs with the least
REGISTERS_A_THREAD, REGISTERS_AN_SM = 255, 65536


@dataclass(frozen=True)
class Tiling:
    """The members of ``struct Tiling`` in ``cuda/flash_fwd/traits.cuh``, in its order."""

    schedule: str
    row_warps: int
    m_tiles: int
    key_warps: int
    keys: int
    slice: int
    stages: int
    q_in_registers: bool
    blocks_an_sm: int
    split_loops: bool

    @property
    def cpp(self) -> str:
        """The C++ constant."""
        first, *rest = astuple(self)
        return f"Tiling{{Schedule::k{first.capitalize()}, {', '.join(str(x).lower() for x in rest)}}}"

    @property
    def name(self) -> str:
        """For file names and symbols: the members' values, ``st4x2x1k64s32t2q1b2l0``."""
        s, rows, m, key_warps, keys, piece, stages, q, blocks, loops = (
            int(x) if isinstance(x, bool) else x for x in astuple(self)
        )
        return f"{s[:2]}{rows}x{m}x{key_warps}k{keys}s{piece}t{stages}q{q}b{blocks}l{loops}"

    @property
    def block_q(self) -> int:
        """Rows of a block."""
        return 16 * self.m_tiles * self.row_warps

    @property
    def block_kv(self) -> int:
        """Keys of a tile."""
        return self.keys * self.key_warps

    @property
    def threads(self) -> int:
        """Of a block."""
        return 32 * self.row_warps * self.key_warps

    def shared_bytes(self, head_dim: int) -> int:
        """Of a block: K and V in every stage, and Q or, where pairs of warps hold Q, what they exchange."""
        stages = 4 * head_dim * self.stages * self.block_kv
        if self.schedule == "paired":  # for each warp and stage P, the rows' factors, and whether they moved
            return stages + 2 * self.row_warps * (self.keys // 16 * 512 + 16 * 4 + 4)
        return stages + 2 * head_dim * self.block_q

    def part_bytes(self, head_dim: int) -> int:
        """Of the parts of O that warps of the same rows add up, in the place of K."""
        return self.row_warps * self.key_warps * self.m_tiles * head_dim // 8 * 32 * 16

    def registers_at_least(self, head_dim: int) -> int:
        """Of a thread: O, S and Q as far as they are held, a fragment of K or V, maximum and sum of the rows."""
        m = self.m_tiles
        if self.schedule == "paired":  # O of 32 rows and half of the columns, S of 16 rows
            return head_dim // 2 + self.keys // 2 + head_dim // 4 + 8
        q = m * head_dim // 4 if self.q_in_registers else 4 * m
        return m * (head_dim + self.keys) // 2 + q + 4 + 4 * m

    def ldmatrix_per_mma(self, head_dim: int) -> float:
        """Reads of shared memory for each tensor instruction of a tile."""
        steps, groups = head_dim // 16, self.keys // 16
        q = 0 if self.q_in_registers else self.m_tiles * steps * (self.keys // self.slice)
        return (2 * steps * groups + q) / (4 * steps * groups * self.m_tiles)


CHOICES: dict[str, tuple[object, ...]] = {
    "schedule": SCHEDULES,
    "row_warps": (1, 2, 4, 8),
    "m_tiles": (1, 2, 4),
    "key_warps": (1, 2, 4),
    "keys": (32, 48, 64, 96, 128),
    "slice": (16, 32, 48, 64, 96),
    "stages": (1, 2),
    "q_in_registers": (False, True),
    "blocks_an_sm": (1, 2, 3),
    "split_loops": (False, True),
}


@dataclass(frozen=True)
class Cell:
    """What a tiling is chosen for: a family of the catalog and its head_dim."""

    family: str
    head_dim: int

    @property
    def variant(self) -> str:
        """``Full`` for ``Variant::kFull``."""
        return FLASH_VARIANTS[self.family][0]

    def __str__(self) -> str:
        return f"{self.family}_d{self.head_dim}"


def cells() -> tuple[Cell, ...]:
    """Every cell of the catalog."""
    return tuple(Cell(family, d) for family, (_, head_dims) in FLASH_VARIANTS.items() for d in head_dims)


def reasons(tiling: Tiling, cell: Cell) -> list[str]:
    """Why a tiling cannot be built for a cell, as far as that is known without a compiler; none: it may be."""
    t, head_dim, found = tiling, cell.head_dim, []
    if t.slice > t.keys or t.keys % t.slice:
        found.append(f"slices of {t.slice} do not divide {t.keys} keys")
    if (shared := t.shared_bytes(head_dim)) > SHARED_BYTES:
        found.append(f"shared memory: {shared} bytes of {SHARED_BYTES}")
    registers = t.registers_at_least(head_dim)
    room = min(REGISTERS_A_THREAD, REGISTERS_AN_SM // (t.threads * t.blocks_an_sm) // 8 * 8)
    if registers > room:
        found.append(f"registers: at least {registers} of {room}")
    if t.schedule == "paired":
        if (t.m_tiles, t.key_warps, t.stages, t.q_in_registers, t.split_loops) != (1, 1, 2, True, False):
            found.append("paired: one tile of rows a warp, one warp along the keys, 2 stages, Q in registers, one loop")
        if t.row_warps % 2 or t.slice != t.keys:
            found.append("paired: an even number of warps, and all keys at once")
        if cell.variant not in ("Full", "Causal") or head_dim % 64:
            found.append("paired: for full and causal, and whole spans of 64 columns")
    if t.schedule == "straight" and t.key_warps > 1:
        found.append("straight: one warp along the keys")
    if t.schedule == "pipelined":
        if t.key_warps > 1 and not t.q_in_registers:
            found.append("pipelined: the sums of several warps along the keys take the place of Q")
        if t.key_warps > 1 and t.part_bytes(head_dim) > 2 * head_dim * t.stages * t.block_kv:
            found.append("pipelined: the parts of O do not fit the place of K")
        if t.stages != 2:
            found.append("pipelined: needs 2 stages")
        if t.split_loops:
            found.append("pipelined: has one loop")
        if cell.variant not in ("Full", "Small"):
            found.append("pipelined: has no diagonal")
    if head_dim // 8 % t.key_warps:
        found.append(f"{t.key_warps} warps do not share {head_dim // 8} tiles of columns")
    found += _copies(t, cell)
    return found


def _copies(t: Tiling, cell: Cell) -> list[str]:
    """Whether every thread copies the same number of chunks (``cuda/attention/swizzle.cuh``)."""
    if cell.variant in ("General", "Scored"):
        chunks = cell.head_dim // 8
        uneven = [n for n in (t.block_q, t.block_kv) if n * chunks % t.threads]
    else:
        step = t.threads // (8 if cell.head_dim % 64 == 0 else 4)
        if step % 8:
            return [f"{t.threads} threads copy {step} rows at a time, which 8 does not divide"]
        uneven = [n for n in (t.block_q, t.block_kv) if n % step]
    return [f"{t.threads} threads do not share a copy of {n} rows" for n in uneven[:1]]


def changes(tiling: Tiling, built: Tiling) -> int:
    """In how many members a tiling differs from the one that is built, a slice that only follows its keys aside."""
    different = [f.name for f in fields(Tiling) if getattr(tiling, f.name) != getattr(built, f.name)]
    if "keys" in different and "slice" in different:
        largest = max((x for x in range(16, built.slice + 1, 16) if tiling.keys % x == 0), default=0)
        if tiling.slice == largest:
            different.remove("slice")
    return len(different)


def rank(tiling: Tiling, cell: Cell, built: Tiling) -> tuple[float, ...]:
    """Smaller is tried first: near to what is built, few reads of shared memory, many warps on an SM."""
    blocks = min(tiling.blocks_an_sm, 2 * SHARED_BYTES // tiling.shared_bytes(cell.head_dim))
    return changes(tiling, built), tiling.ldmatrix_per_mma(cell.head_dim), -blocks * tiling.threads


@dataclass(frozen=True)
class Enumeration:
    """The tilings of a cell: what is built, what may be tried in the order in which it is, and what is refused."""

    cell: Cell
    built: Tiling
    tried: tuple[Tiling, ...]
    refused: Mapping[Tiling, list[str]]  # within the number of changes that was asked for
    elsewhere: Mapping[str, int]  # tilings further away, by what speaks against them first; empty unless asked for

    @staticmethod
    def of(cell: Cell, built: Tiling, most_changes: int, everywhere: bool = False) -> Enumeration:
        """All combinations, of which those with up to `most_changes` may be tried; the others are counted on demand."""
        tried, refused = [built], {}
        elsewhere: collections.Counter[str] = collections.Counter()
        values = astuple(built)
        for combination in itertools.product(*(CHOICES[f.name] for f in fields(Tiling))):
            near = sum(map(operator.ne, combination, values)) <= most_changes + 1  # one more: a slice that follows
            if not (near or everywhere) or combination == values:
                continue
            tiling = Tiling(*combination)  # type: ignore[arg-type]
            found = reasons(tiling, cell)
            if changes(tiling, built) > most_changes:
                elsewhere[_kind(found[0]) if found else "may be built"] += everywhere
            elif found:
                refused[tiling] = found
            else:
                tried.append(tiling)
        tried.sort(key=lambda t: (rank(t, cell, built), t.name))
        return Enumeration(cell, built, tuple(tried), refused, dict(elsewhere.most_common()) if everywhere else {})


def _kind(reason: str) -> str:
    return reason.split(":")[0] if ":" in reason else "shape"


# ---- what is built, asked of the compiler


def probe_source(wanted: tuple[Cell, ...], ptx_arch: int) -> str:
    """A translation unit whose constant `tilings` has a row of numbers for each cell."""
    names = [f.name for f in fields(Tiling)]
    binding = ", ".join(f"{name}_" for name in names)
    values = ", ".join(["schedule", *(f"int(t.{name})" for name in names[1:])])
    known = " : ".join(f"t.schedule == Schedule::k{s.capitalize()} ? {i}" for i, s in enumerate(SCHEDULES))
    rows = ",\n    ".join(f"row(tiling<{c.head_dim}, Variant::k{c.variant}, {ptx_arch}>())" for c in wanted)
    return f"""// Generated by scripts/tilings.py.
#include "flash_fwd/traits.cuh"

namespace flashcore {{
struct Row {{ int values[{len(names)}]; }};
constexpr Row row(Tiling t) {{
    const auto [{binding}] = t;  // does not compile if the members are not as many as in tilings.py
    const int schedule = {known} : -1;
    return {{{{{values}}}}};
}}
}}
using namespace flashcore;
extern "C" __constant__ const Row tilings[{len(wanted)}] = {{
    {rows}}};
"""


def built_tilings(
    compiler: Path, ptx_arch: int, wanted: tuple[Cell, ...] | None = None, headers: Path = ROOT / "cuda"
) -> dict[Cell, Tiling]:
    """What ``traits.cuh`` says for each cell in PTX for `ptx_arch`.

    Raises
    ------
    RuntimeError
        Where it and this module disagree on the members.
    """
    wanted = cells() if wanted is None else wanted
    source = BUILD / "tune" / "tilings.cu"
    write_if_changed(source, probe_source(wanted, ptx_arch))
    flags = [*NVCC_FLAGS.split(), "-diag-suppress=177"]  # 177: the names of the binding are not used
    command = [compiler, "-ptx", f"-arch=compute_{ptx_arch}", *flags, f"-I{headers}", "-o", "-", source]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.search(r"\btilings\[\d+\] = \{([^}]*)\}", ran.stdout)
    if ran.returncode or found is None:
        raise RuntimeError(f"scripts/tilings.py and cuda/flash_fwd/traits.cuh differ:\n{ran.stdout}{ran.stderr}")
    data = bytes(int(x) for x in found[1].split(","))
    width = len(fields(Tiling))
    data = data.ljust(4 * width * len(wanted), b"\0")  # the compiler leaves trailing zeros out
    numbers = [int.from_bytes(data[i : i + 4], "little", signed=True) for i in range(0, len(data), 4)]
    made = {}
    for cell, start in zip(wanted, range(0, len(numbers), width)):
        schedule, *rest = numbers[start : start + width]
        if schedule < 0:
            raise RuntimeError(f"{cell}: a schedule that scripts/tilings.py does not know")
        values = [bool(x) if f.type == "bool" else x for f, x in zip(fields(Tiling)[1:], rest)]
        made[cell] = Tiling(SCHEDULES[schedule], *values)
    return made
