"""Runs kernels of the catalog over awkward shapes with every access and barrier checked.

    python scripts/sanitize.py                           every kernel
    python scripts/sanitize.py qk_wmma_f16_d64_sm89      one kernel
    python scripts/sanitize.py 'flash_fwd_tma_*'         those that match, of what the GPU (or emulated arch) gets
    python scripts/sanitize.py 1x8x512x512x64            batch x heads x seqlen_q x seqlen_k x head_dim, every stage

On the emulator it reports, by source line, what is wrong (races, accesses out of bounds, uninitialised reads,
deadlocks) and what it costs: bank conflicts, sectors a request, the mix of instructions. On a GPU it only runs the
shapes: start it under compute-sanitizer or ncu, as scripts/gpu_check.sh does.

Exit status: 0 if nothing is wrong, 1 if something is, 2 for a wrong argument.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fnmatch
import json
import multiprocessing
import os
import re
import sys
from pathlib import PurePath
from typing import Any

import numpy as np

import flashcore_drv as fc
from flashcore_drv.catalog import CATALOG, KernelSpec, kernels_of
from flashcore_drv.interop import view_of
from flashcore_drv.plan import plan_flash
from flashcore_drv.runtime import Device, DeviceArray, Stream, is_emulated
from flashcore_drv.runtime import driver as runtime_driver
from flashcore_drv.validation import make_problem

# (batch, heads, heads_kv, seqlen_q, seqlen_k, gap after each row in elements): one more and one less than tiles,
# lengths of 1, rows that are not aligned, grouped heads, several tiles and several blocks in every direction.
SHAPES = (
    (1, 1, 1, 1, 1, 0),
    (1, 2, 1, 65, 63, 0),
    (2, 2, 2, 64, 129, 8),
    (1, 4, 2, 33, 300, 1),
    (1, 1, 1, 130, 257, 3),
)
QUICK_SHAPES = SHAPES[1:4]

ANY_ROWS = ("flash_fwd_general", "flash_fwd_scored")
"""Fused kernels of any head_dim and alignment."""

ONE_LENGTH = ("flash_fwd_small",)
"""Fused kernels of problems whose sequences are all of one length."""

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "flash_fwd_causal": [{"causal": True}],
    "flash_fwd_window": [{"window_size": (40, 20)}],
    "flash_fwd_general": [{}, {"causal": True}],
    "flash_fwd_scored": [{"causal": True, "softcap": 5.0}],
    "flash_fwd_tma_causal": [{"causal": True}],
    "flash_fwd_tma_causal_short": [{"causal": True}],
    "flash_fwd_tma_causal_few": [{"causal": True}],
    "flash_fwd_tma_window": [{"window_size": (40, 20)}],
    "flash_fwd_tma_scored": [{"causal": True, "softcap": 5.0}],
}
"""What fused kernels are launched with, one after the other; those that are not here with nothing."""


def by_tma(spec: KernelSpec) -> bool:
    """Whether the kernel copies by tensor maps: any head_dim, rows on 16 bytes."""
    return spec.family.startswith("flash_fwd_tma")


def head_dims(spec: KernelSpec) -> list[int]:
    """The size of a variant, and a smaller one if it takes that."""
    if not spec.size.startswith("d"):
        return [64]
    size = int(spec.size[1:])
    exact = spec.family.startswith("flash_fwd") and spec.family not in ANY_ROWS and not by_tma(spec)
    return [size] if exact else [size, size - 24]


def placed(shape: tuple[int, ...], dtype: Any, gap: int, values: Any = None) -> DeviceArray:
    """An array [batch, heads, rows, cols] whose rows are `gap` elements apart, NaN between them and at the end."""
    pitch = shape[3] + gap
    host = np.full((*shape[:3], pitch), np.nan, np.float32)
    if values is not None:
        host[..., : shape[3]] = values
    whole = DeviceArray.from_numpy(host.astype(dtype))
    return whole.as_strided(shape, (shape[1] * shape[2] * pitch, shape[2] * pitch, pitch, 1))


def exercise(spec: KernelSpec, shape: tuple[int, ...], head_dim: int) -> None:
    """One launch of the kernel on random values."""
    batch, heads, heads_kv, seqlen_q, seqlen_k, gap = shape
    rng = np.random.default_rng(0)
    dtype = spec.dtype.to_numpy()
    q_shape, kv_shape = (batch, heads, seqlen_q, head_dim), (batch, heads_kv, seqlen_k, head_dim)
    s_shape = (batch, heads, seqlen_q, seqlen_k)
    if spec.family == "qk_wmma":
        q, k = (placed(x, dtype, gap, rng.standard_normal(x)) for x in (q_shape, kv_shape))
        fc.unfused.qk(q, k, layout="bhsd", out=placed(s_shape, np.float32, gap))
    elif spec.family == "softmax":
        s = placed(s_shape, np.float32, gap, rng.standard_normal(s_shape))
        for causal in (False, True):
            out = placed(s_shape, dtype, gap)
            fc.unfused.softmax(s, dtype=dtype, causal=causal, return_lse=True, out=out)
    elif spec.family.startswith("flash_fwd"):
        for options in OPTIONS.get(spec.family, [{}]):
            for packed in (False, True)[: 1 if spec.family in ONE_LENGTH else 2]:
                flash(spec, shape, head_dim, options, packed)
    elif spec.family == "attention_merge":
        outs = [placed(q_shape, dtype, gap, rng.standard_normal(q_shape)) for _ in range(2)]
        sums = [placed((*q_shape[:3], 1), np.float32, 0, rng.standard_normal((*q_shape[:3], 1))) for _ in range(2)]
        sums = [x.as_strided(x.shape[:3], x.strides[:3]) for x in sums]
        out = placed(q_shape, dtype, gap)
        fc.attention_merge(outs[0], sums[0], outs[1], sums[1], layout="bhsd", out=out)
    else:
        p, v = (
            placed(s_shape, dtype, gap, rng.random(s_shape)),
            placed(kv_shape, dtype, gap, rng.standard_normal(kv_shape)),
        )
        fc.unfused.pv(p, v, layout="bhsd", out=placed(q_shape, dtype, gap))
    Device.current().synchronize()


def flash(
    spec: KernelSpec, shape: tuple[int, ...], head_dim: int, options: dict[str, Any], packed: bool = False
) -> None:
    """Launch a fused kernel, whatever dispatch would take, with such gaps as it takes.

    With `packed` the sequences are packed, all but the last one row shorter, with sinks and fewer keys used.
    """
    batch, heads, heads_kv, seqlen_q, seqlen_k, gap = shape
    gap = gap if spec.family in ANY_ROWS else -(-gap // 8) * 8 if by_tma(spec) else 0
    rng = np.random.default_rng(0)
    device, dtype = Device.current(), spec.dtype.to_numpy()
    arrays = {}
    for name, h, s in (
        ("q", heads, seqlen_q),
        ("k", heads_kv, seqlen_k),
        ("v", heads_kv, seqlen_k),
        ("o", heads, seqlen_q),
    ):
        dims = (1, h, batch * s, head_dim) if packed else (batch, h, s, head_dim)
        x = placed(dims, dtype, gap, None if name == "o" else rng.standard_normal(dims))
        arrays[name] = x.as_strided((dims[2], h, head_dim), (*x.strides[2:0:-1], 1)) if packed else x
    sides: dict[str, Any] = {}
    if packed:
        for name, s in (("cu_seqlens_q", seqlen_q), ("cu_seqlens_k", seqlen_k)):
            sides[name] = np.cumsum([0, *[s - 1] * (batch - 1), s]).astype(np.int32)
        sides |= {"sinks": np.ones(heads, np.float32), "seqused_k": np.full(batch, seqlen_k // 2, np.int32)}
    if spec.family.endswith("_scored"):
        sides["alibi_slopes"] = np.full((batch, heads), 0.1, np.float32)
    if spec.family.endswith("_scored") and not packed:
        bias = rng.standard_normal((1, heads, seqlen_q, seqlen_k))
        sides["bias"] = placed(bias.shape, dtype, gap, bias)
    sides = {name: DeviceArray.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in sides.items()}
    rows = batch * seqlen_q
    lse = DeviceArray.empty((heads, rows) if packed else (batch, heads, seqlen_q), np.float32)
    problem = make_problem(
        *(view_of(x, name) for name, x in arrays.items()),
        {name: view_of(x, name) for name, x in sides.items()},
        max_seqlens=(seqlen_q, seqlen_k) if packed else None,
        layout="bhsd",
        return_lse=True,
        **options,
    )
    addresses = {name: x.address for name, x in (arrays | sides | {"lse": lse}).items()}
    with device.active():
        for launch in plan_flash(device, spec, problem, addresses):
            launch(Stream(device, 0))


def inspect(stem: str, shapes: list[tuple[tuple[int, ...], int]]) -> dict[str, Any]:
    """Run one kernel over shapes until something is wrong: the finding, and on the emulator the merged report."""
    spec = next(s for s in CATALOG if s.stem == stem)
    found: dict[str, Any] = {"stem": stem, "launches": 0, "finding": None, "report": None}
    merged = None
    for shape, head_dim in shapes:
        try:
            exercise(spec, shape, head_dim)
        except fc.DriverError as error:
            last = runtime_driver.module().last_error() if is_emulated() else None
            problem = "batch {}, heads {}/{}, seqlen {} x {}, row gap {}".format(*shape)
            found["finding"] = {
                "kind": last.kind if last else error.name,
                "message": str(last or error),
                "problem": f"{problem}, head_dim {head_dim}",
            }
            break
        found["launches"] += 1
        if is_emulated():
            name, report = runtime_driver.module().reports()[-1]
            if name != stem:
                raise RuntimeError(f"{stem} was to run and {name} did")
            if merged is None:
                merged = report
            else:
                merged.merge(report)
    if merged is not None:
        found["report"] = merged.to_json()
    return found


def softmax_keys(spec: KernelSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape with so many keys that dispatch takes this variant of softmax."""
    return (*shape[:4], shape[4] + 1024, shape[5]) if spec.size == "w8" else shape


def work(args: argparse.Namespace) -> list[tuple[str, list[tuple[tuple[int, ...], int]]]]:
    """What to run: (stem, [(shape, head_dim)])."""
    every = specs = kernels_of(Device.current().arch)
    if args.what and (match := re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)x(\d+)", args.what)):
        batch, heads, seqlen_q, seqlen_k, head_dim = map(int, match.groups())
        shape = (batch, heads, heads, seqlen_q, seqlen_k, 0)
        warps = "w1" if seqlen_k <= 1024 else "w8"
        fits = [s for s in specs if s.size == warps or (s.size[0] == "d" and head_dim <= int(s.size[1:]))]
        smallest = {s.family: min(int(x.size[1:]) for x in fits if x.family == s.family) for s in fits}
        taken = [s for s in fits if int(s.size[1:]) == smallest[s.family]]
        return [
            (s.stem, [(shape, head_dim)])
            for s in taken
            if len(head_dims(s)) > 1 or head_dim in head_dims(s) or s.size == warps
        ]
    if args.what:
        specs = tuple(s for s in every if fnmatch.fnmatchcase(s.stem, args.what))
        if not specs:
            stems = ", ".join(s.stem for s in every)
            print(f"error: {args.what!r} is neither a problem (1x8x512x512x64) nor a kernel: {stems}", file=sys.stderr)
            sys.exit(2)
    shapes = QUICK_SHAPES if args.quick else SHAPES
    return [
        (s.stem, [(softmax_keys(s, x) if s.family == "softmax" else x, d) for x in shapes for d in head_dims(s)])
        for s in specs
    ]


def print_report(found: dict[str, Any], lines: int) -> None:
    """One kernel's finding and the lines that cost most."""
    finding = found["finding"]
    print(f"\n{found['stem']}: {found['launches']} launches, {'clean' if finding is None else 'WRONG'}")
    if finding:
        print(f"  {finding['kind']}: {finding['message']}\n  with {finding['problem']}")
    if not found["report"]:
        return
    totals = found["report"]["totals"]
    mix = sorted(totals["pipes"].items(), key=lambda x: -x[1])
    print("  warp instructions by pipe: " + ", ".join(f"{pipe} {count}" for pipe, count in mix))
    print(
        f"  {'source line':28} {'instructions':>12} {'shared':>8} {'conflicts':>9} {'requests':>8} {'sectors/req':>11}"
    )
    for row in sorted(found["report"]["lines"], key=lambda r: -r["instructions"])[:lines]:
        requests = row["global_requests"]
        ratio = f"{row['global_sectors'] / requests:.1f}" if requests else "-"
        where = f"{PurePath(row['file']).name}:{row['line']}"
        print(
            f"  {where:28} {row['instructions']:>12} {row['shared_wavefronts']:>8} {row['bank_conflicts']:>9} "
            f"{requests:>8} {ratio:>11}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", metavar="STEM|PROBLEM", help="default: every kernel of the catalog")
    parser.add_argument("--quick", action="store_true", help="three shapes instead of five")
    parser.add_argument("--lines", type=int, default=8, help="source lines in each report (default: 8)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the text")
    args = parser.parse_args()
    os.environ["FLASHCORE_EMULATOR_CHECKS"] = "all"  # counts included, which are off by default
    todo = work(args)
    if is_emulated():
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
            results = list(pool.map(inspect, *zip(*todo)))
    else:
        results = [inspect(*x) for x in todo]
    wrong = [r["stem"] for r in results if r["finding"]]
    if args.json:
        print(json.dumps({"device": Device.current().name, "kernels": results, "ok": not wrong}, indent=1))
    else:
        for result in results:
            print_report(result, args.lines)
        print(f"\n{len(results)} kernels on {Device.current().name}: {f'wrong: {wrong}' if wrong else 'clean'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
