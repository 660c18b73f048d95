"""Sweeps of the fused kernels on this machine's GPU, for dispatch and for who writes kernels.

    python scripts/tune.py                    both sweeps: writes the GPU's table and benchmarks/<gpu>/<date>-tune.json
    python scripts/tune.py --only choice      which of the built kernels is the fastest, problem by problem
    python scripts/tune.py --only tiles       tilings that are not built, beside those that are
    python scripts/tune.py --list [--all]     the tilings of the cells, tried or refused and why, for sm_89 (no GPU)
    python scripts/tune.py --facts            what the model of other GPUs reads off the built kernels (no GPU)
    python scripts/tune.py --refit TABLE      the constants of a table, again from its own times (no GPU)

`choice` times the kernels that solve the same problems, fits the constants of the waves (flashcore_drv/tuned.py) to one
set of problems and shows what the choice gains on another that it was not fitted to. Dispatch consults that table.
`tiles` builds every tiling near to the built one and ranks them on one set of problems, again beside a second set; only
a change of cuda/flash_fwd/traits.cuh makes anything of it. All are checked against float64 first, and timed in turns
from CUDA graphs.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cubins
import numpy as np
from benchmark.conditions import commit, output
from benchmark.measure import EventTimer, Replay, interleaved
from shapes import DTYPES, Shape
from tilings import Cell, Enumeration, Tiling, built_tilings, cells

import flashcore_drv as fc
from flashcore_drv import catalog, reference, tuned
from flashcore_drv.catalog import FLASH_VARIANTS, KernelSpec, ptx_arch
from flashcore_drv.dtypes import BF16, F16, DType
from flashcore_drv.plan import plan_flash
from flashcore_drv.runtime import Device, DeviceArray, Graph, Stream, is_emulated
from flashcore_drv.tuned import WaveCost

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "tune"  # of candidates: it has the layout of build/
ELEMENTS = 1 << 25  # of the largest q: 67 MB

Timer = Callable[[dict[str, Replay], Stream, int, int], dict[str, list[float]]]
Times = dict[str, float]


# ---- problems


def label(shape: Shape) -> str:
    """A problem in the data: its sizes, dtype and mask."""
    sizes = f"{shape.batch}x{shape.heads}/{shape.heads_kv}x{shape.seqlen_q}x{shape.seqlen_k}x{shape.head_dim}"
    return f"{sizes} {shape.dtype}{' causal' if shape.causal else ''}"


@dataclass(frozen=True)
class Problems:
    """What a choice is made by, and what shows what it is worth."""

    choice: tuple[Shape, ...]
    hold_out: tuple[Shape, ...]

    def every(self, step: int) -> Problems:
        """A part of them."""
        return Problems(self.choice[::step], self.hold_out[::step])


def choice_problems(family: str) -> Problems:
    """For the choice among a family's alternatives: the full grid and latency shapes; odd lengths, GQA, both dtypes."""
    causal, sizes = "causal" in family, tuned.contested(family)
    grid = [
        Shape(16384 // s, 2048 // d, 2048 // d, s, s, d, "f16", causal)
        for d in sizes
        if d in (64, 128)
        for s in GRID_SEQLENS
    ]
    latency = [
        Shape(1, heads, heads, seqlen, seqlen, d, "f16", causal)
        for d in sizes
        for seqlen in (128, 256, 512, 1024, 2048)
        for heads in (1, 4, 8, 16, 24, 32, 48, 64)
    ]
    few_queries = [
        Shape(batch, heads, heads, seqlen_q, 4096, d, "f16", causal)
        for d in sizes
        for seqlen_q in (1, 16, 64)
        for batch, heads in ((1, 8), (1, 32), (4, 8), (7, 8))
    ]
    last_waves = [
        Shape(1, heads, heads, seqlen, seqlen, d, "f16", causal)
        for d in sizes
        for seqlen in (384, 768, 1536, 3072)
        for heads in (10, 20, 28, 40, 56)
    ]
    lengths = ((90, 90), (250, 250), (620, 620), (1200, 1200), (1750, 1750), (2600, 2600), (3500, 3500))
    few = ((7, 3300), (140, 1100))
    heads = ((1, 14, 14), (3, 10, 2), (2, 18, 6), (6, 12, 12))
    hold_out = [
        Shape(*h, *s, d, ("f16", "bf16")[i % 2], causal)
        for i, (s, h, d) in enumerate(itertools.product((*lengths, *few), heads, sizes))
    ]
    return Problems((*grid, *latency, *few_queries, *last_waves), tuple(hold_out))


GRID_SEQLENS = (512, 1024, 2048, 4096, 8192, 16384)


def tile_problems(cell: Cell) -> Problems:
    """For the tilings of a cell: lengths of the grid, or latency shapes for a kernel that is for small problems."""
    d, causal = cell.head_dim, cell.variant == "Causal"
    if cell.variant == "Small":
        choice = [(1, 8, 8, 256), (1, 8, 8, 512), (1, 16, 16, 512), (1, 4, 4, 1024)]
        hold_out = [(1, 6, 6, 400), (2, 6, 3, 700), (1, 12, 4, 300)]
    else:
        h = 2048 // d // 4 * 4
        choice = [(16384 // s, h, h, s) for s in (512, 2048, 8192)]
        hold_out = [(23, h, h // 4, 700), (5, h, h, 3000), (2, h, h // 2, 7000)]
    choice_shapes, hold_out_shapes = (
        tuple(Shape(b, hq, hkv, s, s, d, "f16", causal) for b, hq, hkv, s in part) for part in (choice, hold_out)
    )
    return Problems(choice_shapes, hold_out_shapes)


# ---- measuring


class Wrong(Exception):
    """A kernel's result is not what it should be."""


def in_turns(replays: dict[str, Replay], stream: Stream, repeat: int, rounds: int) -> dict[str, list[float]]:
    """GPU microseconds a launch for every candidate, from graphs of `repeat` launches: `rounds` samples each."""
    timer = EventTimer(stream)
    return interleaved({name: timer(replay, repeat) for name, replay in replays.items()}, rounds)


class Bench:
    """Random inputs on a device, and kernels that are checked and timed on prefixes of them.

    Parameters
    ----------
    device : Device
        Where.
    rounds : int
        Timed replays of each graph.
    elements : int
        Of the largest q, k, v or o.
    timer : function
        As :func:`in_turns`.
    replay_us : float
        About how long a replay of short kernels is to take, up to 50 launches.
    """

    def __init__(
        self,
        device: Device,
        rounds: int,
        elements: int = ELEMENTS,
        timer: Timer = in_turns,
        replay_us: float = 1000.0,
    ) -> None:
        self.device, self.rounds, self.timer, self.replay_us = device, rounds, timer, replay_us
        self.stream = Stream(device)
        self.host: dict[tuple[str, str], Any] = {}  # 16-bit patterns
        self.arrays: dict[tuple[str, str], DeviceArray] = {}
        rng = np.random.default_rng(0)
        for name in "qkv":
            values = rng.standard_normal(elements, np.float32)
            self._place(name, F16, values.astype(np.float16).view(np.uint16))
            self._place(name, BF16, (values.view(np.uint32) >> 16).astype(np.uint16))
        self.out = DeviceArray.empty((elements,), np.uint16, device)
        device.synchronize()  # the memory is there in the order of another stream

    def _place(self, name: str, dtype: DType, bits: Any) -> None:
        self.host[name, dtype.name] = bits
        self.arrays[name, dtype.name] = DeviceArray.from_numpy(bits, self.device)

    def launches(self, spec: KernelSpec, shape: Shape) -> list[Any]:
        """What runs the kernel on the shape. Raises ValueError for one that the inputs are too small for."""
        largest = max(math.prod(x.shape) for x in (shape.problem.q, shape.problem.k))
        if largest > self.out.size:
            raise ValueError(f"{label(shape)}: {largest} elements; allowed: up to {self.out.size}")
        addresses = {name: self.arrays[name, shape.dtype].address for name in "qkv"} | {"o": self.out.address}
        return list(plan_flash(self.device, spec, shape.problem, addresses))

    def run(self, launches: Iterable[Any]) -> None:
        """Once, on an output that is NaN before."""
        self.out.fill_bytes(0xFF, self.stream)
        with self.device.active():
            for launch in launches:
                launch(self.stream)
        self.stream.synchronize()

    def check(self, spec: KernelSpec, shape: Shape) -> None:
        """Compare up to 32 rows of the last head with float64. Raises Wrong."""
        p = shape.problem
        self.run(self.launches(spec, shape))
        head_kv = (shape.heads - 1) // (shape.heads // shape.heads_kv)
        q = self._head("q", shape, p.q.head_stride * (shape.batch * shape.heads - 1), shape.seqlen_q)
        at_kv = p.k.batch_stride * (shape.batch - 1) + p.k.head_stride * head_kv
        k, v = (self._head(name, shape, at_kv, shape.seqlen_k) for name in "kv")
        size = shape.seqlen_q * shape.head_dim
        last = self.out.as_strided((size,), (1,), p.o.head_stride * (shape.batch * shape.heads - 1))
        found = values_of(last.to_numpy(stream=self.stream), shape.dtype).reshape(shape.seqlen_q, shape.head_dim)
        rows = np.unique(np.linspace(0, shape.seqlen_q - 1, 32).astype(int))
        scores = q[rows] @ k.T * p.softmax_scale
        if shape.causal:
            seen = np.arange(shape.seqlen_k) <= rows[:, None] + shape.seqlen_k - shape.seqlen_q
            scores = np.where(seen, scores, -np.inf)
        probabilities, _ = reference.softmax(scores, causal=False)
        true = probabilities @ v
        error = float(np.abs(found[rows] - true).max())
        allowed = 4 * 2.0**-p.dtype.mantissa_bits * float(np.abs(true).max())
        if not (error <= allowed and np.isfinite(found).all()):
            raise Wrong(f"{spec.stem} is wrong on {label(shape)}: error {error:.2e}, allowed {allowed:.2e}")

    def _head(self, name: str, shape: Shape, offset: int, rows: int) -> Any:
        part = self.host[name, shape.dtype][offset : offset + rows * shape.head_dim]
        return values_of(part, shape.dtype).reshape(rows, shape.head_dim)

    def times(self, kernels: Mapping[str, KernelSpec], shape: Shape) -> Times:
        """Median GPU microseconds of every kernel on the shape, in turns. Raises Wrong before anything is timed."""
        for spec in kernels.values():
            self.check(spec, shape)
        repeat = max(1, min(50, round(self.replay_us / max(4.0, shape.problem.flops / 3e8))))
        graphs = {}
        for name, spec in kernels.items():
            launches = self.launches(spec, shape)
            with self.device.active(), Graph.capture(self.stream) as graphs[name]:
                for _ in range(repeat):
                    for launch in launches:
                        launch(self.stream)
        samples = self.timer({name: g.replay for name, g in graphs.items()}, self.stream, repeat, self.rounds)
        for graph in graphs.values():
            graph.close()
        return {name: round(statistics.median(x), 3) for name, x in samples.items()}


def values_of(bits: Any, dtype: str) -> Any:
    """16-bit patterns as float64."""
    if dtype == "f16":
        return bits.view(np.float16).astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def conditions(device: Device, args: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat the numbers."""
    query = "driver_version,clocks.sm,clocks.max.sm,temperature.gpu,clocks_throttle_reasons.active"
    compiler = subprocess.run([cubins.nvcc(), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"V\d+\.\d+\.\d+", compiler)
    return {
        "gpu": device.name,
        "multiprocessors": device.multiprocessors,
        query: output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", f"--id={device.ordinal}"),
        "nvcc": release[0] if release else "unknown",
        "commit": args.commit,
        "date": args.date,
        "rounds": args.rounds,
        "timing": "CUDA events around replays of a graph of about 1 ms; median over rounds, kernels in turns",
        "l2": "warm where a problem fits it",
        "inputs": "standard normal",
    }


# ---- choice: among the kernels that are built


def built_kernel(family: str, shape: Shape, arch: int) -> KernelSpec:
    """The catalog's kernel of a family for a shape."""
    wanted = family, DTYPES[shape.dtype], f"d{shape.head_dim}"
    return next(s for s in catalog.kernels_of(arch) if (s.family, s.dtype, s.size) == wanted)


def choice_families(arch: int) -> list[str]:
    """The families with alternatives that a GPU of this compute capability gets."""
    there = {s.family for s in catalog.kernels_of(arch)}
    return [family for family in tuned.ALTERNATIVES if family in there]


def sweep_choice(bench: Bench, step: int) -> dict[str, list[dict[str, Any]]]:
    """Times of all alternatives: rows {"problem", "us"} of both sets."""
    found: dict[str, list[dict[str, Any]]] = {"choice": [], "hold_out": []}
    for family in choice_families(bench.device.arch):
        problems = choice_problems(family).every(step)
        for name, rows in found.items():
            for shape in progress(getattr(problems, name), f"{family} {name}"):
                kernels = {
                    f: built_kernel(f, shape, bench.device.arch) for f in tuned.alternatives(family, shape.head_dim)
                }
                rows.append({"problem": list(asdict(shape).values()), "us": bench.times(kernels, shape)})
    return found


def shape_of(row: Mapping[str, Any]) -> Shape:
    """The problem of a row of a table."""
    return Shape(*row["problem"])


def fit(
    rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Mapping[str, int]], multiprocessors: int
) -> tuple[float, dict[str, WaveCost]]:
    """Microseconds of a launch, and the constants of every kernel, none negative.

    The relative error of most rows is made small, and that of the others is let be (problems that do not fit the L2,
    for example, take longer than waves say): least squares in which a row counts the less the further it is off. What
    is not linear, the crowding of the last wave, is tried out.

    Parameters
    ----------
    rows : sequence
        {"problem": members of :class:`shapes.Shape`, "us": {family: microseconds}}.
    facts : mapping
        For every kernel (family and size) its "rows", "keys" and "blocks_an_sm".
    multiprocessors : int
        Of the GPU.
    """
    times: dict[str, list[tuple[Shape, float]]] = {name: [] for name in sorted(facts)}
    for row in rows:
        shape = shape_of(row)
        for family, us in row["us"].items():
            times[f"{family}_d{shape.head_dim}"].append((shape, us))
    times = {name: x for name, x in times.items() if x}
    launches = [fit_kernel(x, facts[name], multiprocessors, None).launch for name, x in times.items()]
    launch = round(statistics.median(launches), 3)
    return launch, {name: fit_kernel(x, facts[name], multiprocessors, launch).cost for name, x in times.items()}


CROWDINGS = (1, 2, 3, 4, 8)
FEW_PERCENT = 0.03  # relative error from which on a row counts less


@dataclass(frozen=True)
class Fit:
    """The constants of a kernel, and the sum over the rows of what is made small."""

    launch: float
    cost: WaveCost
    loss: float


def fit_kernel(
    times: Sequence[tuple[Shape, float]], facts: Mapping[str, int], multiprocessors: int, launch: float | None
) -> Fit:
    """The best fit of a kernel's times, with this time of a launch or, without it, with the one that fits best."""
    fits = []
    for crowding in CROWDINGS:
        one = WaveCost(**facts, crowding=crowding, start=0, start_each=0, key=0, key_each=0)
        lines, right = [], []
        for shape, us in times:
            terms = [
                replace(one, **{constant: 1}).time(shape.problem, multiprocessors) / us
                for constant in ("start", "start_each", "key", "key_each")
            ]
            lines.append([1 / us, *terms] if launch is None else terms)
            right.append(1 - (launch or 0) / us)
        matrix, wanted, weights = np.array(lines), np.array(right), np.ones(len(lines))
        for _ in range(30):
            solution = not_negative(matrix * weights[:, None], wanted * weights)
            error = np.abs(matrix @ solution - wanted)
            weights = np.sqrt(np.minimum(1, FEW_PERCENT / np.maximum(error, 1e-9)))
        loss = np.where(error < FEW_PERCENT, error**2, FEW_PERCENT * (2 * error - FEW_PERCENT)).sum()  # Huber's
        start, start_each, key, key_each = (float(f"{x:.4g}") for x in solution[-4:])
        cost = replace(one, start=start, start_each=start_each, key=key, key_each=key_each)
        fits.append(Fit(float(solution[0]) if launch is None else launch, cost, float(loss)))
    return min(fits, key=lambda f: f.loss)


def not_negative(matrix: Any, right: Any) -> Any:
    """The least-squares solution with the most negative unknown set to 0 until there is none."""
    free = np.flatnonzero(np.abs(matrix).sum(0))
    while True:
        scale = np.abs(matrix[:, free]).max(0)
        part = np.linalg.lstsq(matrix[:, free] / scale, right, rcond=None)[0] / scale
        if (part >= 0).all():
            solution = np.zeros(matrix.shape[1])
            solution[free] = part
            return solution
        free = np.delete(free, np.argmin(part * scale))


def chosen(shape: Shape, us: Times, costs: Mapping[str, WaveCost], multiprocessors: int) -> str:
    """The family that constants choose, among those that were timed."""

    def time_of(family: str) -> float:
        cost = costs[f"{family}_d{shape.head_dim}"]
        return cost.time(shape.problem, multiprocessors)

    return min(us, key=time_of)


def evaluate(
    rows: Sequence[Mapping[str, Any]], costs: Mapping[str, Mapping[str, WaveCost]], multiprocessors: int
) -> dict[str, dict[str, Any]]:
    """For each way to choose: the time beside the best kernel's, as geometric mean and at worst, and where that is.

    Beside the ways in `costs`, every family is a way: to take it always where it was timed.
    """
    families = sorted({f for row in rows for f in row["us"]})
    found = {}
    for way in (*costs, *(f"always {f}" for f in families)):
        ratios = []
        for row in rows:
            us, shape = row["us"], shape_of(row)
            family = chosen(shape, us, costs[way], multiprocessors) if way in costs else way.removeprefix("always ")
            if family not in us:
                continue
            ratios.append((us[family] / min(us.values()), label(shape)))
        worst, where = max(ratios)
        mean = math.exp(statistics.fmean(math.log(r) for r, _ in ratios))
        found[way] = {"mean": round(mean, 4), "worst": round(worst, 4), "where": where}
    return found


def choice_facts(arch: int) -> dict[str, dict[str, int]]:
    """The tile, and blocks that an SM of the GPU holds, for every kernel that `choice` times."""
    facts, tiles = {}, choice_tiles(arch)
    for base in choice_families(arch):
        for d in tuned.contested(base):
            for family in tuned.alternatives(base, d):
                spec = built_kernel(family, Shape(1, 1, 1, 1, 1, d), arch)
                info, tiling = info_of(spec), tiles.get((family, spec.size))
                facts[f"{family}_d{d}"] = {
                    "rows": int(info["tile_rows"]),
                    "keys": tiling.block_kv if tiling else int(info["box_rows_kv"]),
                    "blocks_an_sm": int(str(cubins.resources(arch, spec)["blocks_per_sm"])),
                    "persistent": bool(info["blocks_an_sm"]),
                }
    return facts


def choice_tiles(arch: int) -> dict[tuple[str, str], Tiling]:
    """The tilings of the kernels without tensor maps that `choice` times, by family and size."""
    pairs = {(f, d) for base in tuned.ALTERNATIVES for d in tuned.contested(base) for f in tuned.alternatives(base, d)}
    wanted = tuple(Cell(f, d) for f, d in sorted(pairs) if f in FLASH_VARIANTS)
    return {(cell.family, f"d{cell.head_dim}"): t for cell, t in tilings_for(arch, wanted).items()}


def tilings_for(arch: int, wanted: Sequence[Cell]) -> dict[Cell, Tiling]:
    """What is built for a GPU of this compute capability."""
    built_for = ptx_arch(arch)
    if built_for is None:
        sys.exit(f"error: no kernel is built for compute capability {arch}")
    return built_tilings(cubins.nvcc(), built_for, tuple(wanted))


def info_of(spec: KernelSpec, folder: Path = cubins.BUILD) -> dict[str, int | float]:
    """The info record of a built kernel."""
    return cubins.kernel_info((folder / "ptx" / f"{spec.stem}.ptx").read_text(), spec.stem)


def make_table(found: dict[str, Any], facts: Mapping[str, Mapping[str, int]], arch: int) -> dict[str, Any]:
    """The table of a GPU: constants, what they are worth, conditions, and the times behind them."""
    where = found["conditions"]
    launch, costs = fit(found["measured"]["choice"], facts, where["multiprocessors"])
    base = costs if where["gpu"] == tuned.FALLBACK else tuned.table(tuned.FALLBACK) or {}
    ways = {"table": costs, "model": tuned.adapted(base, arch)}
    return {
        "gpu": where["gpu"],
        "arch": arch,
        "conditions": where,
        "launch_us": launch,
        "kernels": {name: asdict(cost) for name, cost in costs.items()},
        "time_beside_the_best_kernel": {
            part: evaluate(rows, ways, where["multiprocessors"]) for part, rows in found["measured"].items()
        },
        "measured": found["measured"],
    }


def print_table(table: Mapping[str, Any]) -> None:
    print(f"{table['gpu']}: a launch {table['launch_us']} us")
    print(
        f"{'kernel':22} {'rows':>4} {'an SM':>5} {'crowding':>8} {'start':>7} {'each':>7} {'ns a key':>8} {'each':>7}"
    )
    for name, k in table["kernels"].items():
        print(
            f"{name:22} {k['rows']:>4} {k['blocks_an_sm']:>5} {k['crowding']:>8} {k['start']:>7.2f} "
            f"{k['start_each']:>7.2f} "
            f"{1e3 * k['key']:>8.2f} {1e3 * k['key_each']:>7.2f}"
        )
    for part, ways in table["time_beside_the_best_kernel"].items():
        print(f"{part.replace('_', '-')} ({len(table['measured'][part])} problems), time beside the best kernel's")
        for way, r in ways.items():
            print(f"  {way:24} mean {r['mean']:.4f}, worst {r['worst']:.3f} ({r['where']})")


# ---- tiles: what is not built


@dataclass
class Candidate:
    """A tiling that was tried: its kernel, and why it went no further or its times."""

    cell: Cell
    tiling: Tiling
    spec: KernelSpec
    reason: str | None = None
    registers: int = 0
    blocks_an_sm: int | None = None
    choice: Times | None = None  # by problem, microseconds
    hold_out: Times | None = None


def candidate(cell: Cell, tiling: Tiling, arch: int) -> Candidate:
    """The f16 kernel of a cell with this tiling."""
    shape = Shape(1, 1, 1, 1, 1, cell.head_dim)
    spec = built_kernel(cell.family, shape, arch)
    cpp = f"{spec.cpp[: spec.cpp.index('tiling<')]}{tiling.cpp}>"
    return Candidate(cell, tiling, replace(spec, size=f"{spec.size}_{tiling.name}", cpp=cpp))


def build(candidate: Candidate, arch: int, compiler: Path, ptxas: Path, ptxas_arch: int | None = None) -> Candidate:
    """Compile it as make does, and note registers and, where it cannot be used, the reason.

    Raises
    ------
    RuntimeError
        If the kernel says other things of itself than :mod:`tilings` does.
    """
    spec, tiling = candidate.spec, candidate.tiling
    source, ptx = FOLDER / "gen" / f"{spec.stem}.cu", FOLDER / "ptx" / f"{spec.stem}.ptx"
    cubin = FOLDER / "cubin" / f"sm_{arch}" / f"{spec.stem}.cubin"
    for path in (source, ptx, cubin):
        path.parent.mkdir(parents=True, exist_ok=True)
    cubins.write_if_changed(source, cubins.instantiation(spec))
    flags = [f"-arch=compute_{spec.arch}", *cubins.NVCC_FLAGS.split(), "-Icuda", "-Ibuild/gen"]
    made = subprocess.run([compiler, "-ptx", *flags, "-o", ptx, source], cwd=ROOT, capture_output=True, text=True)
    if made.returncode:
        error = re.search(r"error: (.*)", made.stdout + made.stderr)
        candidate.reason = f"does not compile: {error[1] if error else made.stderr.strip()}"
        return candidate
    info, head_dim = info_of(spec, FOLDER), candidate.cell.head_dim
    said = {"threads": tiling.threads, "tile_rows": tiling.block_q, "shared_bytes": tiling.shared_bytes(head_dim)}
    if said != {name: info[name] for name in said}:
        raise RuntimeError(f"{spec.stem}: tilings.py says {said}, the kernel {info}")
    made = subprocess.run([ptxas, f"-arch=sm_{arch}", "-v", "-o", cubin, ptx], capture_output=True, text=True)
    log = made.stdout + made.stderr
    if made.returncode:
        candidate.reason = f"does not assemble: {log.strip().splitlines()[-1]}"
        return candidate
    candidate.registers = int(match[1]) if (match := re.search(r"Used (\d+) registers", log)) else 0
    candidate.blocks_an_sm = cubins.blocks_per_sm(arch, tiling.threads, candidate.registers, int(info["shared_bytes"]))
    spilled = sum(int(x) for x in re.findall(r"(\d+) bytes spill", log))
    if spilled:
        candidate.reason = f"spills {spilled} bytes"
    return candidate


@contextlib.contextmanager
def kernels_of(folder: Path) -> Iterator[None]:
    """Let kernels be loaded from another build folder."""
    before = os.environ.get("FLASHCORE_BUILD")
    os.environ["FLASHCORE_BUILD"] = str(folder)
    try:
        yield
    finally:
        del os.environ["FLASHCORE_BUILD"]
        if before is not None:
            os.environ["FLASHCORE_BUILD"] = before


def sweep_cell(bench: Bench, tried: Sequence[Candidate], built: Tiling, problems: Problems) -> None:
    """Time what can be used of a cell's candidates; a wrong one is noted as such, unless it is the built one."""
    usable = {c.tiling.name: c for c in tried if c.reason is None}
    with kernels_of(FOLDER):
        ragged = Shape(2, 2, 1, 165, 301, tried[0].cell.head_dim, "f16", problems.choice[0].causal)
        for name, c in list(usable.items()):
            try:
                for shape in (ragged, *problems.choice[:1]):
                    bench.check(c.spec, shape)
            except Wrong as wrong:
                if c.tiling == built:
                    raise
                c.reason = str(wrong)
                del usable[name]
        for part in ("choice", "hold_out"):
            for shape in getattr(problems, part):
                for name, us in bench.times({n: c.spec for n, c in usable.items()}, shape).items():
                    times = getattr(usable[name], part) or {}
                    setattr(usable[name], part, times | {label(shape): us})


def ranked(tried: Sequence[Candidate], built: Tiling) -> list[dict[str, Any]]:
    """The candidates of a cell, the fastest on the choice problems first, beside what is built; then those refused."""
    reference_times = next(c for c in tried if c.tiling == built)
    rows = []
    for c in tried:
        row: dict[str, Any] = {"tiling": c.tiling.name, "built": c.tiling == built, "registers": c.registers}
        row |= {"blocks_an_sm": c.blocks_an_sm, "reason": c.reason}
        for part in ("choice", "hold_out"):
            mine, theirs = getattr(c, part), getattr(reference_times, part)
            row[part] = round(ratio(mine, theirs), 4) if mine else None
            row[f"{part}_us"] = mine
        rows.append(row)
    return sorted(rows, key=lambda r: (r["choice"] is None, r["choice"] or 0, r["tiling"]))


def ratio(mine: Times, theirs: Times) -> float:
    """Geometric mean of a set of times beside another's."""
    return math.exp(statistics.fmean(math.log(mine[p] / theirs[p]) for p in theirs))


def sweep_tiles(bench: Bench, swept: Sequence[Enumeration], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Build what may be tried, then time it cell by cell: a row for each with its candidates, ranked."""
    arch, compiler = bench.device.arch, cubins.nvcc()
    ptxas = cubins.toolkit_program(compiler, "ptxas")
    cubins.write_if_changed(cubins.BUILD / "gen" / "abi_check.h", fc.abi.check_header())
    tried = {e.cell: [candidate(e.cell, t, arch) for t in limited(e, args.limit)] for e in swept}
    everything = [c for group in tried.values() for c in group]
    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in progress(pool.map(lambda c: build(c, arch, compiler, ptxas), everything), "built", len(everything)):
            pass
    for e in swept:
        sweep_cell(bench, tried[e.cell], e.built, tile_problems(e.cell))
        yield {"cell": str(e.cell), "built": e.built.name, "candidates": ranked(tried[e.cell], e.built)}


def limited(enumeration: Enumeration, limit: int) -> list[Tiling]:
    """The first of what may be tried, the built one among them."""
    first = enumeration.tried[:limit]
    return [enumeration.built, *(t for t in first if t != enumeration.built)]


def print_cell(row: Mapping[str, Any]) -> None:
    print(f"\n{row['cell']}, built {row['built']}; time beside it (less is better)")
    print(f"  {'tiling':24} {'choice':>7} {'hold-out':>8} {'registers':>9} {'blocks/SM':>9}")
    for c in row["candidates"]:
        if c["choice"] is None:
            print(f"  {c['tiling']:24} {c['reason']}")
            continue
        note = "  built" if c["built"] else ""
        print(
            f"  {c['tiling']:24} {c['choice']:>7.3f} {c['hold_out']:>8.3f} {c['registers']:>9} "
            f"{c['blocks_an_sm'] or '-':>9}{note}"
        )


# ---- without a GPU


def print_enumerations(listed: Sequence[Enumeration]) -> None:
    for e in listed:
        print(f"\n{e.cell}: built {e.built.name}; {len(e.tried)} may be tried, {len(e.refused)} near it are refused")
        for i, tiling in enumerate(e.tried):
            size = f"{tiling.shared_bytes(e.cell.head_dim) / 1024:.0f} KB, {tiling.threads} threads"
            note = "  built" if tiling == e.built else ""
            print(f"  {i:>3} {tiling.name:24} {tiling.block_q:>4} x {tiling.block_kv:<3} {size}{note}")
        for tiling, why in e.refused.items():
            print(f"    - {tiling.name:24} {'; '.join(why)}")
        if e.elsewhere:
            print("    further away: " + ", ".join(f"{n} {kind}" for kind, n in e.elsewhere.items()))


def write_facts() -> None:
    """Writes tuned/kernels.json from what is built for sm_89."""
    facts = {}
    for (family, size), tiling in choice_tiles(89).items():
        spec = built_kernel(family, Shape(1, 1, 1, 1, 1, int(size[1:])), 89)
        built = cubins.resources(89, spec)
        facts[f"{family}_{size}"] = {
            "rows": tiling.block_q,
            "keys": tiling.block_kv,
            "threads": tiling.threads,
            "registers": built["registers"],
            "shared_bytes": built["shared_dynamic_bytes"],
        }
    write(tuned.FOLDER / "kernels.json", facts)


# ---- the program


def progress(items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """Count on the terminal's error stream, with the seconds that have passed."""
    total = len(items) if total is None else total  # type: ignore[arg-type]
    start = shown = time.monotonic()
    for done, item in enumerate(items):
        yield item
        if done + 1 == total or time.monotonic() > shown + 5:
            shown = time.monotonic()
            print(f"{what}: {done + 1} of {total}, {shown - start:.0f} s", file=sys.stderr, flush=True)


def write(path: Path, found: Mapping[str, Any]) -> None:
    """JSON whose innermost objects and lists have a line each."""
    text = json.dumps(found, indent=1)
    text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda m: re.sub(r"\n\s*", " ", m[0]), text)
    text = re.sub(r"\{\n\s*(\"problem\": \[.*\]),\n\s*(.*)\n\s*\}", r"{ \1, \2 }", text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["choice", "tiles"], help="one sweep (default: both)")
    parser.add_argument("--quick", action="store_true", help="a quarter of the problems, 4 tilings a cell")
    parser.add_argument("--cells", default=DEFAULT_CELLS, help="regular expression of the cells (default: %(default)s)")
    parser.add_argument("--changes", type=int, default=1, help="members that differ from what is built (default: 1)")
    parser.add_argument("--limit", type=int, default=100, help="tilings tried a cell (default: 100)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at once (default: all cores)")
    parser.add_argument("--rounds", type=int, default=7, help="timed replays of each graph (default: 7)")
    parser.add_argument("--table", type=Path, metavar="FOLDER", default=tuned.FOLDER, help="for the GPU's table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for `tiles` (default: in benchmarks/<gpu>/)")
    parser.add_argument("--commit", default=commit(), help="the commit that is measured (default: from git)")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="of the measurement")
    parser.add_argument("--list", action="store_true", help="print the tilings and measure nothing")
    parser.add_argument("--all", action="store_true", help="with --list: count those further away, too")
    parser.add_argument("--facts", action="store_true", help="write tuned/kernels.json and measure nothing")
    parser.add_argument("--refit", type=Path, metavar="TABLE", help="fit a table again and measure nothing")
    args = parser.parse_args()
    if args.quick:
        args.limit = min(args.limit, 4)
    if args.facts:
        return write_facts()
    if args.refit:
        table = json.loads(args.refit.read_text())
        names = ("rows", "keys", "blocks_an_sm", "persistent")
        facts = {n: {key: k[key] for key in names if key in k} for n, k in table["kernels"].items()}
        table = make_table(table, facts, table["arch"])
        write(args.refit, table)
        return print_table(table)
    wanted = [c for c in cells() if re.search(args.cells, str(c))]
    if not wanted:
        sys.exit(f"error: --cells {args.cells!r} names none of {', '.join(map(str, cells()))}")
    if args.list:
        return print_enumerations(enumerations(wanted, args, 89))
    measure(wanted, args)


DEFAULT_CELLS = r"^flash_fwd(_causal|_small)?_d\d+$"


def enumerations(wanted: Sequence[Cell], args: argparse.Namespace, arch: int) -> list[Enumeration]:
    """Of the cells, for a GPU of this compute capability."""
    built = tilings_for(arch, wanted)
    return [Enumeration.of(c, built[c], args.changes, args.list and args.all) for c in wanted]


def measure(wanted: Sequence[Cell], args: argparse.Namespace) -> None:
    """The sweeps that were asked for."""
    try:
        device = Device.get(0)
    except (fc.NoDriverError, fc.DriverError) as error:
        sys.exit(f"error: {error}")
    if is_emulated():
        sys.exit("error: tuning needs a GPU: emulated time says nothing of it")
    bench = Bench(device, args.rounds)
    try:
        if args.only != "tiles":
            measured = sweep_choice(bench, 4 if args.quick else 1)
            found = {"conditions": conditions(device, args), "measured": measured}
            table = make_table(found, choice_facts(device.arch), device.arch)
            write(args.table / f"{tuned.file_name(device.name)}.json", table)
            print_table(table)
        if args.only != "choice":
            folder = ROOT / "benchmarks" / tuned.file_name(device.name)
            found = {"suite": "tune", "conditions": conditions(device, args), "cells": []}
            sweep = sweep_tiles(bench, enumerations(wanted, args, device.arch), args)
            for row in progress(sweep, "cells", len(wanted)):
                found["cells"].append(row)  # written each time: a kernel that faults takes the process with it
                write(args.json or folder / f"{args.date}-tune.json", found)
                print_cell(row)
    except Wrong as wrong:
        sys.exit(f"error: {wrong}")


if __name__ == "__main__":
    main()
