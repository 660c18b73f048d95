"""Attention on real or generated input: computed by our kernels, checked against float64, timed on a GPU.

Without options: the reference problem, batch 1, 8 heads, 512 queries and keys, head_dim 64, float16. Without a GPU the
same kernels run in the emulator, which checks them and cannot time them.

Exit status: 0 if the result is right, 1 if it is wrong, 2 if there is none: wrong input, no kernel, no memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from benchmark.measure import EventTimer, interleaved, spread
from benchmark.staged import StagedAttention

import flashcore_drv as fc
from flashcore_drv import dispatch, reference, roofline
from flashcore_drv.dtypes import BF16, F16, F32, dtype_of
from flashcore_drv.interop import view_of
from flashcore_drv.operands import NewArray
from flashcore_drv.problem import Problem
from flashcore_drv.runtime import Device, is_emulated
from flashcore_drv.validation import make_problem

ROUNDS = 20  # timed replays of each graph
DTYPES = {"f16": F16, "float16": F16, "bf16": BF16, "bfloat16": BF16}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message}; --help lists the options\n")


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", type=Path, metavar="FILE", help="one .npz with arrays q, k and v, or three .npy: q k v")
    add("--batch", type=int, default=1)
    add("--heads", type=int, default=8, help="query heads")
    add("--heads-kv", type=int, help="key and value heads, a divisor of --heads (default: as many)")
    add("--seqlen-q", type=int, default=512)
    add("--seqlen-k", type=int, help="default: --seqlen-q")
    add("--head-dim", type=int, default=64)
    add("--dtype", choices=DTYPES, help="default: f16, or that of --input; an input of another type is converted")
    add("--causal", action="store_true", help="query i sees keys j <= i + seqlen_k - seqlen_q")
    add(
        "--window", nargs=2, type=int, metavar=("LEFT", "RIGHT"), default=(-1, -1),
        help="keys before and after its own place that a query sees, -1 for all (default: -1 -1)",
    )  # fmt: skip
    add("--softcap", type=float, default=0.0, help="bound of the scores by tanh (default: 0, none)")
    add("--scale", type=float, help="factor of the scores (default: head_dim ** -0.5)")
    add("--layout", choices=["bshd", "bhsd"], default="bshd", help="of q, k, v and the output (default: bshd)")
    add("--impl", choices=dispatch.IMPLS, default="auto", help="flash…: fused; unfused: stage by stage; auto: both")
    add("--seed", type=int, default=0, help="of the generated input (default: 0)")
    add("--output", type=Path, metavar="FILE.npy", help="where to save the result (bf16 is saved as float32)")
    add("--repeat", type=int, default=100, help="launches of each part in a timed graph (default: 100)")
    add("--json", action="store_true", help="one JSON object instead of the table")
    return parser.parse_args()


def load_input(args: argparse.Namespace) -> list[Any]:
    """The arrays q, k, v of the files."""
    try:
        return read_arrays(args)
    except fc.InvalidArgument:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise fc.InvalidArgument(f"--input {' '.join(map(str, args.input))}: {error}") from None


def read_arrays(args: argparse.Namespace) -> list[Any]:
    """The arrays q, k, v of the files, with NumPy's errors."""
    if len(args.input) == 1 and args.input[0].suffix == ".npz":
        with np.load(args.input[0]) as file:
            if missing := [name for name in "qkv" if name not in file]:
                raise fc.InvalidArgument(f"--input {args.input[0]} has no array {missing[0]!r}; it needs q, k and v")
            arrays = [file[name] for name in "qkv"]
    elif len(args.input) == 3:
        arrays = [np.load(path) for path in args.input]
    else:
        raise fc.InvalidArgument(f"--input takes one .npz or three .npy files, not {len(args.input)}")
    if args.dtype:
        arrays = [x.astype(DTYPES[args.dtype].to_numpy()) for x in arrays]
    return arrays


def generate_input(args: argparse.Namespace) -> list[Any]:
    """Independent standard normal q, k, v."""
    heads_kv = args.heads if args.heads_kv is None else args.heads_kv
    seqlen_k = args.seqlen_q if args.seqlen_k is None else args.seqlen_k
    sizes = {"batch": args.batch, "heads": args.heads, "heads-kv": heads_kv, "seqlen-q": args.seqlen_q}
    for name, value in (sizes | {"seqlen-k": seqlen_k, "head-dim": args.head_dim}).items():
        if value < 1:
            raise fc.InvalidArgument(f"--{name} {value}; allowed: 1 or more")
    rng = np.random.default_rng(args.seed)
    arrays = []
    for heads, seqlen in ((args.heads, args.seqlen_q), (heads_kv, seqlen_k), (heads_kv, seqlen_k)):
        middle = (seqlen, heads) if args.layout == "bshd" else (heads, seqlen)
        x = rng.standard_normal((args.batch, *middle, args.head_dim), np.float32)
        arrays.append(x.astype(DTYPES[args.dtype or "f16"].to_numpy()))
    return arrays


def heads_first(x: Any, layout: str) -> Any:
    """[batch, heads, rows, cols]."""
    return x.swapaxes(1, 2) if layout == "bshd" else x


def check(
    problem: Problem, inputs: list[Any], results: dict[str, Any], args: argparse.Namespace
) -> dict[str, reference.Verdict]:
    """Every output against float64, one key/value head at a time."""
    q, k, v = (heads_first(x, args.layout) for x in inputs)
    options = problem.softmax_scale, args.causal, reference.Scoring(tuple(args.window), args.softcap)
    kinds = {name: name.split()[-1] for name in results}  # "flash o" is an o
    bits = {"s": F32, "p": problem.dtype, "o": problem.dtype, "lse": F32}
    judges = {name: reference.Judge(bits[kind].mantissa_bits) for name, kind in kinds.items()}
    group = problem.num_heads // problem.num_heads_kv
    for b in range(problem.batch):
        for h in range(problem.num_heads_kv):
            q_heads, kv_head = slice(h * group, (h + 1) * group), slice(h, h + 1)
            part = q[b : b + 1, q_heads], k[b : b + 1, kv_head], v[b : b + 1, kv_head]
            true = reference.truth(*part, *options)
            same = reference.same_maths(*part, problem.dtype, *options)
            for name, kind in kinds.items():
                judges[name].add(results[name][b : b + 1, q_heads], getattr(true, kind), getattr(same, kind))
        if problem.batch > 1 and sys.stderr.isatty():
            print(f"\rchecked batch {b + 1} of {problem.batch}", end="", file=sys.stderr)
    return {name: judge.verdict for name, judge in judges.items()}


def report(args: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Compute, check and time; the report and the result."""
    if args.repeat < 1:
        raise fc.InvalidArgument(f"--repeat {args.repeat}; allowed: 1 or more")
    inputs = load_input(args) if args.input else generate_input(args)
    q, k, v = (view_of(x, name) for x, name in zip(inputs, "qkv"))
    dtype_of(q.dtype, "q (use --dtype to convert)")
    problem = make_problem(
        q, k, v, NewArray("out", q.shape, q.dtype),
        softmax_scale=args.scale, causal=args.causal, window_size=args.window, softcap=args.softcap,
        layout=args.layout, return_lse=True,
    )  # fmt: skip
    device = Device.current()
    run = StagedAttention(problem, inputs, device, args.impl)
    results = run.compute()
    for name in results.keys() & {"o", "flash o"}:
        results[name] = heads_first(results[name], args.layout)
    verdicts = check(problem, inputs, results, args)
    times: dict[str, float] = {}
    if not is_emulated():
        timer = EventTimer(run.stream)
        samples = {part: timer(run.graph(args.repeat, part).replay, args.repeat) for part in run.parts}
        times = {part: spread(x)[0] for part, x in interleaved(samples, ROUNDS).items()}
    rows = []
    for part, output in run.outputs.items():
        verdict = verdicts[output]
        flops, nbytes = run.work(part)
        least = roofline.least_us(device, flops, nbytes)
        rows.append({
            "part": part,
            "stem": run.stems.get(part),
            "max_error": verdict.error,
            "allowed_error": verdict.allowed,
            "misplaced_nan_or_inf": verdict.misplaced,
            "ok": verdict.ok,
            "flops": flops,
            "bytes": nbytes,
            "gpu_us": times.get(part),
            "percent_of_roofline": 100 * least / times[part] if least and part in times else None,
        })  # fmt: skip
    return {
        "device": device.name,
        "emulated": is_emulated(),
        "problem": {
            "batch": problem.batch, "num_heads": problem.num_heads, "num_heads_kv": problem.num_heads_kv,
            "seqlen_q": problem.seqlen_q, "seqlen_k": problem.seqlen_k, "head_dim": problem.head_dim,
            "dtype": problem.dtype.numpy_name, "causal": args.causal, "window_size": list(args.window),
            "softcap": args.softcap, "softmax_scale": problem.softmax_scale,
            "layout": args.layout, "input": [str(p) for p in args.input] if args.input else f"seed {args.seed}",
        },
        "parts": rows,
        "lse_max_error": max(v.error for name, v in verdicts.items() if name.endswith("lse")),
        "ok": all(v.ok for v in verdicts.values()),
    }, heads_first(results[run.outputs[rows[-1]["part"]]], args.layout)  # fmt: skip


def print_table(found: dict[str, Any]) -> None:
    problem = found["problem"]
    heads = f"{problem['num_heads']}" + (
        f"/{problem['num_heads_kv']}" if problem["num_heads"] != problem["num_heads_kv"] else ""
    )
    print(f"device   {found['device']}")
    options = [
        text
        for text, is_set in (
            ("causal", problem["causal"]),
            ("window {} {}".format(*problem["window_size"]), problem["window_size"] != [-1, -1]),
            (f"softcap {problem['softcap']:.6g}", problem["softcap"]),
        )
        if is_set
    ]
    print(
        f"problem  batch {problem['batch']}, heads {heads}, seqlen {problem['seqlen_q']} x {problem['seqlen_k']}, "
        f"head_dim {problem['head_dim']}, {', '.join([problem['dtype'], *options])}, "
        f"scale {problem['softmax_scale']:.6g}, {problem['layout']}, input {problem['input']}"
    )
    print(f"\n{'part':8} {'kernel':32} {'max error':>10} {'allowed':>10} {'verdict':>8}", end="")
    print(f" {'GPU us':>8} {'GFLOP':>8} {'MB':>8} {'of roofline':>11}")
    for row in found["parts"]:
        time = "-" if row["gpu_us"] is None else f"{row['gpu_us']:.2f}"
        percent = "-" if row["percent_of_roofline"] is None else f"{row['percent_of_roofline']:.0f} %"
        print(
            f"{row['part']:8} {row['stem'] or 'all three':32} {row['max_error']:10.2e} {row['allowed_error']:10.2e} "
            f"{'ok' if row['ok'] else 'WRONG':>8} {time:>8} {row['flops'] / 1e9:8.3f} {row['bytes'] / 1e6:8.2f} "
            f"{percent:>11}"
        )
    if found["emulated"]:
        print(
            "\nThere is no GPU here: the emulator ran the kernels' PTX. It checks them and says nothing of their speed."
        )
    print(f"\nlargest difference from float64: {found['parts'][-1]['max_error']:.2e}: "
          f"{'right' if found['ok'] else 'WRONG'}")  # fmt: skip


def main() -> None:
    args = parse_arguments()
    try:
        found, result = report(args)
        if args.output:
            np.save(args.output, result if result.dtype.kind == "f" else result.astype(np.float32))
    except (
        fc.InvalidArgument,
        fc.Unsupported,
        fc.KernelImageError,
        fc.NoDriverError,
        fc.DriverError,
        OSError,
        ImportError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print_table(found)
    sys.exit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
