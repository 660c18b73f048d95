"""Compiles a kernel with a planted bug and says how the bug was caught.

Each bug gets a process of its own: what it does to the emulated context, no other sees.
"""

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from features import BiasCase, FeatureCase, Made, guarded
from mutants.table import Mutant, family_of
from strategies import Placed, Storage
from support import start_emulator

import flashcore_drv as fc
from flashcore_drv import plan, reference
from flashcore_drv.catalog import CATALOG, KernelSpec
from flashcore_drv.dtypes import BF16, F16, F32, DType
from flashcore_drv.interop import view_of
from flashcore_drv.plan import plan_flash
from flashcore_drv.runtime import Device, DeviceArray, Stream
from flashcore_drv.validation import make_problem

ROOT = Path(__file__).resolve().parent.parent.parent

# (batch, heads, heads_kv, seqlen_q, seqlen_k, gap after each row in elements, head_dim, causal, rising). Together, for
# each family, as far as it takes them: several batches, heads and groups; rows that are not aligned, by 2 bytes and by
# 8; several tiles, blocks and groups of tiles; ends inside a vector and a tile; fewer and more keys than queries;
# scores that rise or fall from tile to tile, in every row at another rate; a causal block whose first row sees whole
# tiles, and whose other rows see more. head_dim is that of a kernel for up to 64. For pairs of warps: pairs that see
# more keys than others of their block, or none; origins that move in one half of a pair only.
PROBLEMS = {
    "qk": [
        (2, 4, 2, 70, 77, 0, 64, False),
        (1, 2, 2, 65, 328, 8, 56, False),
        (1, 2, 1, 40, 130, 4, 64, False),
        (1, 1, 1, 9, 67, 1, 40, False),
    ],
    "softmax": [
        (1, 2, 2, 9, 300, 0, 64, False),
        (1, 2, 2, 21, 45, 0, 64, True),
        (2, 1, 1, 20, 11, 3, 64, True),
        (1, 1, 1, 9, 260, 4, 64, False),
    ],
    "pv": [
        (2, 4, 2, 70, 200, 0, 64, False),
        (1, 2, 2, 130, 65, 8, 56, False),
        (1, 2, 1, 40, 77, 4, 64, False),
        (1, 1, 1, 9, 67, 1, 40, False),
    ],
    "flash_fwd": [
        (1, 1, 1, 9, 67, 0, 64, False),
        (2, 4, 2, 20, 100, 8, 64, False),
        (1, 2, 2, 150, 260, 0, 64, False),
        (1, 1, 1, 33, 300, 0, 64, False, 16),
    ],
    "flash_fwd_causal": [
        (1, 1, 1, 9, 67, 0, 64, True),
        (2, 4, 2, 20, 100, 8, 64, True),
        (1, 2, 2, 150, 277, 0, 64, True),
        (1, 2, 2, 200, 50, 0, 64, True),
        (1, 1, 1, 33, 300, 0, 64, True, 16),
    ],
    "flash_fwd_small": [
        (1, 1, 1, 9, 50, 0, 64, False),
        (2, 4, 2, 40, 200, 8, 64, False),
        (1, 2, 2, 70, 520, 0, 64, False),
        (1, 2, 2, 33, 600, 0, 64, False, 16),
    ],
    "flash_fwd_general": [
        (1, 1, 1, 9, 67, 1, 40, True),
        (2, 2, 1, 20, 100, 8, 56, False),
        (1, 2, 2, 150, 200, 4, 64, True),
        (1, 1, 1, 200, 50, 0, 40, True),
        (1, 1, 1, 33, 300, 0, 56, False, 16),
    ],
}
# Warpgroups of a row block that need fewer tiles than others, or none; row blocks of one tile; more tiles than stages;
# more row blocks of a block than tasks that it keeps.
PROBLEMS["flash_fwd_tma"] = [
    (1, 1, 1, 9, 67, 0, 64, False),
    (2, 2, 1, 200, 300, 8, 64, False),
    (1, 2, 2, 33, 500, 0, 64, False, 4),
    (1, 12, 12, 20, 70, 0, 64, False),
]
PROBLEMS["flash_fwd_tma_causal"] = [
    (1, 1, 1, 9, 67, 0, 64, True),
    (1, 3, 1, 400, 400, 8, 64, True),
    (1, 2, 2, 300, 90, 0, 64, True),
]
PROBLEMS["flash_fwd_tma_causal_few"] = PROBLEMS["flash_fwd_tma_causal"]
HOPPER = ("flash_fwd_tma", "flash_fwd_tma_causal", "flash_fwd_tma_causal_few")
"""Families for Hopper's own instructions."""
PROBLEMS["attention_merge"] = [
    (2, 2, 2, 37, 1, 0, 64, False),
    (1, 1, 1, 20, 1, 1, 136, False),
]
PROBLEMS["flash_fwd_paired"] = [
    (1, 1, 1, 9, 37, 0, 64, False),
    (2, 2, 1, 70, 100, 8, 64, False),
    (1, 1, 1, 33, 200, 0, 64, False, 16),
]
PROBLEMS["flash_fwd_causal_paired"] = [
    (1, 1, 1, 9, 67, 0, 64, True),
    (1, 1, 1, 100, 130, 0, 64, True),
    (2, 2, 1, 64, 20, 8, 64, True),
    (1, 1, 1, 33, 150, 0, 64, True, 4),
]
PROBLEMS["flash_fwd_window"] = PROBLEMS["flash_fwd_causal"]
PROBLEMS["flash_fwd_scored"] = PROBLEMS["flash_fwd_general"]

# What else the families do. Together: packed sequences, empty ones among them, NaN in the keys that are not used;
# windows narrower and wider than a tile, ends of tiles inside and between them, tiles to skip on both sides; each term
# of the scores alone, with pairs of bias that are aligned and that are not, odd numbers of keys, broadcast dimensions.
_ROWS = Storage((0, 1, 2), 0, 0)
_BASE = FeatureCase(
    lengths=((40, 100),) * 2, packed=False, spare=(0, 0), num_heads_kv=1, group=2, head_dim=64, head_dim_v=64,
    dtype=F16, softmax_scale=0.3, causal=False, window_size=(None, None), softcap=0.0, alibi=None, bias=None,
    sinks=False, seqused_k=False, sides_on_host=False, layout="bhsd", batch_invariant=True, storage=(_ROWS,) * 4,
    seed=0, mean=0.5, outliers=False,
)  # fmt: skip
_PACKED = replace(_BASE, lengths=((70, 100), (0, 30), (33, 0), (20, 130)), packed=True, spare=(3, 5), seqused_k=True)
_SHORT = replace(_BASE, lengths=((70, 100), (0, 30), (20, 50)), packed=True, spare=(3, 5), seqused_k=True)
_NARROW = replace(_BASE, lengths=((150, 260),), window_size=(37, 5))
_BIAS = BiasCase(F16, (False, False, False, False), False, _ROWS, 0.1)
FEATURES = {
    "flash_fwd": [_PACKED, replace(_BASE, lengths=((9, 20),), sinks=True), replace(_PACKED, sinks=True, outliers=True)],
    "flash_fwd_causal": [
        replace(_PACKED, causal=True),
        replace(_BASE, lengths=((60, 20),), causal=True, sinks=True),
        replace(_BASE, lengths=((60, 20),), causal=True),
    ],
    "flash_fwd_tma": [replace(_PACKED, sinks=True)],
    "flash_fwd_tma_causal": [replace(_PACKED, causal=True), replace(_BASE, lengths=((60, 20),), causal=True)],
    "flash_fwd_paired": [replace(_SHORT, sinks=True)],
    "flash_fwd_window": [
        _NARROW,
        replace(_NARROW, lengths=((140, 330),), window_size=(64, 0)),
        replace(_NARROW, lengths=((33, 300),), window_size=(0, 0)),
        replace(_NARROW, lengths=((40, 400),), window_size=(200, 0)),
        replace(_PACKED, window_size=(40, 3)),
    ],
    "flash_fwd_general": [
        replace(_PACKED, window_size=(40, 3)),
        replace(_NARROW, storage=(Storage((0, 1, 2), 3, 1),) * 4),
    ],
    "flash_fwd_scored": [
        replace(_BASE, softcap=5.0),
        replace(_BASE, alibi="batch", causal=True),
        replace(_NARROW, alibi="heads"),
        replace(_BASE, bias=_BIAS),
        replace(_BASE, lengths=((20, 97),), bias=replace(_BIAS, dtype=BF16)),
        replace(_BASE, lengths=((20, 97),), bias=replace(_BIAS, dtype=BF16, storage=Storage((0, 1, 2), 1, 0))),
        replace(_BASE, lengths=((20, 96),), bias=replace(_BIAS, storage=Storage((0, 1, 2), 0, 1))),
        replace(_NARROW, bias=replace(_BIAS, dtype=F32, broadcast=(True, False, True, False))),
        replace(_BASE, bias=replace(_BIAS, dtype=F32, broadcast=(False, True, False, True), by_strides=True)),
    ],
}  # fmt: skip
# Of _PACKED, on the GPU, where nobody checks them: what comes out is undefined, but nothing else is touched.
WRONG_LENGTHS = {
    "flash_fwd": [
        {"cu_seqlens_q": [0, 70, 70, 103, 200], "cu_seqlens_k": [0, 100, 130, 130, 270]},
        {"cu_seqlens_q": [0, 70, 70, 103, 123], "cu_seqlens_k": [-50, 100, 130, 130, 260]},
        {"seqused_k": [30, 30, 30, 5000]},
    ]
}
SEEDS = (0, 1)

Outputs = list[tuple[Any, Any, Any, DType]]  # result, float64 truth, same maths, type


def spec_of(stem: str) -> KernelSpec:
    """The kernel of this name."""
    return next(s for s in CATALOG if s.stem == stem)


def planted(mutant: Mutant) -> str:
    """The source file with the bug."""
    text = (ROOT / "cuda" / mutant.source).read_text()
    starts = [m.start() for m in re.finditer(re.escape(mutant.old), text)]
    if not starts or (mutant.nth is None and len(starts) != 1):
        raise LookupError(f"{mutant.name}: {mutant.old!r} stands {len(starts)} times in {mutant.source}")
    at = starts[mutant.nth or 0]
    return text[:at] + mutant.new + text[at + len(mutant.old) :]


def mutated(mutant: Mutant, folder: Path) -> Path:
    """PTX of the kernel with the bug, in a build folder of its own."""
    cuda = folder / "cuda"
    shutil.copytree(ROOT / "cuda", cuda)
    (cuda / mutant.source).write_text(planted(mutant))
    compiler, *_ = (ROOT / "build" / "compiler.txt").read_text().splitlines()
    ptx = folder / "build" / "ptx" / f"{mutant.stem}.ptx"
    ptx.parent.mkdir(parents=True)
    target = spec_of(mutant.stem).target
    command = [compiler, "-ptx", f"-arch=compute_{target}", "-O3", "-std=c++20", "-lineinfo", f"-I{cuda}"]
    command += [f"-I{ROOT / 'build' / 'gen'}", "-o", ptx, ROOT / "build" / "gen" / f"{mutant.stem}.cu"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder / "build"


def caught(mutant: Mutant) -> str | None:
    """How the bug was caught; None if it was not."""
    with tempfile.TemporaryDirectory() as temporary:
        build = mutated(mutant, Path(temporary))
        ptx = (build / "ptx" / f"{mutant.stem}.ptx").read_text()
        if re.search(r"\b(atom|red)\.\S*\.add\.\S*f(16|32|64)", ptx):
            return "atomic addition of floating-point numbers in the PTX"
        os.environ["FLASHCORE_BUILD"] = str(build)
        return run(mutant.stem)


def run(stem: str) -> str | None:
    """Run the kernel over PROBLEMS, with two orders of warps and blocks: the first thing that is wrong."""
    from flashcore_drv.emulator import Checks
    from flashcore_drv.emulator import driver as emulated

    os.environ["FLASHCORE_DRIVER"] = "emulator"
    family, target = family_of(stem), spec_of(stem).target
    if family in HOPPER:  # blocks that make several row blocks each
        Device.multiprocessors = property(lambda device: 2)
    for seed in SEEDS:
        start_emulator(seed=seed, checks=Checks.all(), arch="sm_90" if target == "90a" else None)
        for compute in computations(stem, seed):
            try:
                outputs = compute()
            except (fc.DriverError, AssertionError) as error:
                return str(emulated.last_error() or error)
            for out, true, same, dtype in outputs:
                verdict = reference.judge(out, true, same, dtype.mantissa_bits)
                if not verdict.ok:
                    return f"wrong result: {verdict}"
        totals = [report.totals for _, report in emulated.reports()]
        conflicts = sum(t.bank_conflicts for t in totals)
        wavefronts = sum(t.shared_wavefronts for t in totals)
        if family != "softmax" and conflicts > 0.25 * wavefronts:
            return f"bank conflicts in {conflicts} of {wavefronts} wavefronts"
    return None


def computations(stem: str, seed: int) -> Iterator[Callable[[], Outputs]]:
    """Everything that is computed with a kernel."""
    family = family_of(stem)
    for problem in PROBLEMS[family]:
        yield functools.partial(CASES[family], stem, Problem(*problem), np.random.default_rng(seed))
    for case in FEATURES.get(family, ()):
        yield functools.partial(features, stem, replace(case, seed=seed), {})
    for wrong in WRONG_LENGTHS.get(family, ()):
        yield functools.partial(features, stem, replace(_PACKED, seed=seed), wrong)


@dataclass(frozen=True)
class Problem:
    """Sizes, the gap after each row in elements, and how fast scores rise from tile to tile."""

    batch: int
    heads: int
    heads_kv: int
    seqlen_q: int
    seqlen_k: int
    gap: int
    head_dim: int
    causal: bool
    rising: float = 0

    def place(self, shape: tuple[int, ...], dtype: Any, values: Any = None) -> Placed:
        return Placed(shape, np.dtype(dtype), Storage((0, 1, 2), self.gap, 0), values)


def qk(stem: str, x: Problem, rng: np.random.Generator) -> Outputs:
    dtype = BF16 if "_bf16_" in stem else F16
    head_dim = x.head_dim + (64 if "_d128_" in stem else 0)
    q, k = (
        rng.standard_normal((x.batch, heads, rows, head_dim)).astype(dtype.to_numpy())
        for heads, rows in ((x.heads, x.seqlen_q), (x.heads_kv, x.seqlen_k))
    )
    out = x.place((x.batch, x.heads, x.seqlen_q, x.seqlen_k), np.float32)
    arrays = [x.place(a.shape, a.dtype, a).array for a in (q, k)]
    fc.unfused.qk(*arrays, softmax_scale=0.3, layout="bhsd", out=out.array)
    return [(out.read(), reference.truth(q, k, k, 0.3, False).s, reference.qk_rounded(q, k, 0.3), F32)]


def softmax(stem: str, x: Problem, rng: np.random.Generator) -> Outputs:
    dtype = BF16 if "_bf16_" in stem else F16
    shape = x.batch, x.heads, x.seqlen_q, x.seqlen_k + (1040 if "_w8_" in stem else 0)
    values = (100 + 8 * rng.standard_normal(shape)).astype(np.float32)
    s = x.place(shape, np.float32, values)
    outs = [x.place(shape, dtype.to_numpy()) for _ in range(2)]
    options = {"dtype": dtype.to_numpy(), "causal": x.causal}
    fc.unfused.softmax(s.array, out=outs[0].array, **options)
    _, lse = fc.unfused.softmax(s.array, out=outs[1].array, return_lse=True, **options)
    true, true_lse = reference.softmax(values.astype(np.float64), x.causal)
    same, same_lse = reference.softmax_rounded(values, dtype, x.causal)
    return [(out.read(), true, same, dtype) for out in outs] + [(lse.to_numpy(), true_lse, same_lse, F32)]


def pv(stem: str, x: Problem, rng: np.random.Generator) -> Outputs:
    dtype = BF16 if "_bf16_" in stem else F16
    head_dim = x.head_dim + (64 if "_d128_" in stem else 0)
    weights = rng.random((x.batch, x.heads, x.seqlen_q, x.seqlen_k))
    p = (weights / weights.sum(-1, keepdims=True)).astype(dtype.to_numpy())
    v = rng.standard_normal((x.batch, x.heads_kv, x.seqlen_k, head_dim)).astype(p.dtype)
    out = x.place((x.batch, x.heads, x.seqlen_q, head_dim), p.dtype)
    fc.unfused.pv(*(x.place(a.shape, a.dtype, a).array for a in (p, v)), layout="bhsd", out=out.array)
    true = p.astype(np.float64) @ reference.expand_heads(v, x.heads).astype(np.float64)
    return [(out.read(), true, reference.pv_rounded(p, v), dtype)]


def flash(stem: str, x: Problem, rng: np.random.Generator) -> Outputs:
    """The kernel itself, past dispatch; where there is one head without lse, else with; dependent if it can be."""
    spec = spec_of(stem)
    shapes = {
        name: (x.batch, heads, rows, x.head_dim + int(spec.size[1:]) - 64)
        for name, heads, rows in zip(
            "qkvo",
            (x.heads, x.heads_kv, x.heads_kv, x.heads),
            (x.seqlen_q, x.seqlen_k, x.seqlen_k, x.seqlen_q),
        )
    }
    values = {name: rng.standard_normal(shapes[name]) for name in "qkv"}
    if x.rising:  # for the last queries, as kernels start at the last key; they fall for the first ones
        values["q"][..., 0] = x.rising * np.linspace(-1, 1, x.seqlen_q)
        values["k"][..., 0] = np.linspace(120, 0, x.seqlen_k)
    values = {name: a.astype(spec.dtype.to_numpy()) for name, a in values.items()}
    placed = {name: x.place(shape, spec.dtype.to_numpy(), values.get(name)) for name, shape in shapes.items()}
    views = {name: view_of(array.array, name) for name, array in placed.items()}
    problem = make_problem(*views.values(), softmax_scale=0.3, causal=x.causal, layout="bhsd", return_lse=x.heads > 1)
    addresses = {name: view.address for name, view in views.items()}
    device = Device.current()
    stream = Stream.of(device, None)
    lse = DeviceArray.empty(shapes["q"][:3], F32.to_numpy(), device, stream)
    if problem.return_lse:
        addresses["lse"] = lse.address
    # a group of heads for each batch, as where K and V of all do not fit the L2
    groups = mock.patch.object(plan, "heads_in_a_group", lambda problem, *_: problem.num_heads)
    with device.active(), groups:
        for launch in plan_flash(device, spec, problem, addresses, spec.waits):
            launch(stream)
    true = reference.truth(*values.values(), 0.3, x.causal)
    same = reference.same_maths(*values.values(), spec.dtype, 0.3, x.causal)
    outputs: Outputs = [(placed["o"].read(), true.o, same.o, spec.dtype)]
    if problem.return_lse:
        outputs.append((lse.to_numpy(), true.lse, same.lse, F32))
    return outputs


def features(stem: str, case: FeatureCase, wrong: dict[str, list[int]]) -> Outputs:
    """The kernel through the interface; nothing is compared where lengths are wrong."""
    spec = spec_of(stem)
    narrower = 8 if spec.family == "flash_fwd_general" else 0
    size = int(spec.size[1:])
    made = Made(replace(case, dtype=spec.dtype, head_dim=size - 3 * narrower, head_dim_v=size - narrower))
    out = made.new_output()
    arguments: dict[str, Any] = {name: guarded(np.array(x, np.int32)) for name, x in wrong.items()}
    if family_of(stem) in HOPPER:  # by default not all that they can do is theirs
        arguments["impl"] = "flash_sm90"
    lse = made.compute(out, **arguments)
    found = out.read()
    if wrong:
        return []
    (true_o, true_lse), (same_o, same_lse) = made.expected()
    rows = slice(made.end)
    return [
        (found[:, :, rows], true_o[:, :, rows], same_o[:, :, rows], spec.dtype),
        (lse, true_lse[..., rows], same_lse[..., rows], F32),
    ]


def merge(stem: str, x: Problem, rng: np.random.Generator) -> Outputs:
    """Parts of which some rows have seen nothing; the second has other gaps between its rows."""
    dtype = BF16 if "_bf16_" in stem else F16
    shape = x.batch, x.heads, x.seqlen_q, x.head_dim
    outs = [rng.standard_normal(shape).astype(dtype.to_numpy()) for _ in range(2)]
    sums = [(3 * rng.standard_normal(shape[:3])).astype(np.float32) for _ in range(2)]
    for out, lse in zip(outs, sums):
        empty = rng.random(lse.shape) < 0.3
        out[empty], lse[empty] = 0, -np.inf
    a, b = (y.place(shape, dtype.to_numpy(), v) for y, v in zip((x, replace(x, gap=2 * x.gap + 4)), outs))
    room = x.place(shape, dtype.to_numpy())
    _, lse = fc.attention_merge(a.array, guarded(sums[0]), b.array, guarded(sums[1]), layout="bhsd", out=room.array)
    true, same = (reference.merge(outs[0], sums[0], outs[1], sums[1], kind) for kind in (np.float64, np.float32))
    return [(room.read(), true[0], same[0].astype(dtype.to_numpy()), dtype), (lse.to_numpy(), true[1], same[1], F32)]


CASES: dict[str, Callable[[str, Problem, np.random.Generator], Outputs]] = {
    "qk": qk,
    "softmax": softmax,
    "pv": pv,
    "flash_fwd": flash,
    "flash_fwd_causal": flash,
    "flash_fwd_tma": flash,
    "flash_fwd_tma_causal": flash,
    "flash_fwd_tma_causal_few": flash,
    "flash_fwd_paired": flash,
    "flash_fwd_causal_paired": flash,
    "flash_fwd_small": flash,
    "flash_fwd_general": flash,
    "flash_fwd_window": flash,
    "flash_fwd_scored": flash,
    "attention_merge": merge,
}
