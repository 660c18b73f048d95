"""Times of our kernels beside their peers, with the conditions of the measurement.

    python scripts/bench.py reference   the reference problem, part by part, beside cuBLAS and FlashAttention-2 (GPU)
    python scripts/bench.py forward     36 points beside FlashAttention-2 and cuDNN (GPU with PyTorch)
    python scripts/bench.py emulator    what running kernels on the emulator takes (no GPU)

The peers of `reference` are PyTorch's matmul, softmax, matmul and its FlashAttention-2, used where PyTorch is
importable. All runs from CUDA graphs, ours and the peers' in turns, on the same inputs, after a check against float64;
what is wrong is reported and not timed. The predecessor's times are quoted from its own records, on another GPU (NVIDIA
L4): no ratio is formed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from staged import Replay, StagedAttention, interleaved_us, spread

import flashcore_drv as fc
from flashcore_drv import reference
from flashcore_drv.dispatch import select
from flashcore_drv.interop import view_of
from flashcore_drv.operands import NewArray
from flashcore_drv.plan import plan_flash
from flashcore_drv.problem import make_problem
from flashcore_drv.runtime import Device, Graph, Stream, is_emulated

ROOT = Path(__file__).resolve().parent.parent
BATCH, HEADS, SEQLEN, HEAD_DIM = 1, 8, 512, 64
MAX_ERROR = 1e-3  # of scores, probabilities and outputs near 1
PREDECESSOR_L4_US = {"qk": 142.0, "pv": 57.0}
PEERS = {"FA2": "FLASH_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}


def output(*command: str) -> str:
    """What a command prints, or "unknown"."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git_commit() -> str:
    return os.environ.get("COMMIT") or output("git", "rev-parse", "--short", "HEAD")


def conditions(device: Device, args: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat the numbers."""
    query = "driver_version,clocks.sm,clocks.max.sm,temperature.gpu,clocks_throttle_reasons.active,power.draw"
    smi = output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", f"--id={device.ordinal}")
    manifest = ROOT / "build" / "cubin" / f"sm_{device.arch}" / "manifest.json"
    return {
        "gpu": device.name,
        "arch": f"sm_{device.arch}",
        "kernels": "compute_89 PTX assembled for the GPU" if device.arch >= 89 else "compute_80 PTX",
        query: smi,
        "nvcc": json.loads(manifest.read_text())["nvcc"],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cuda-bindings": version("cuda-bindings"),
        "date": datetime.date.today().isoformat(),
        "commit": args.commit,
        "repeat": args.repeat,
        "rounds": args.rounds,
        "timing": "CUDA events around replays of a graph of `repeat` launches; median over rounds, candidates in turns",
        "inputs": "independent standard normal, seed 0, float16",
    }


def torch_graph(launches: list[Callable[[], Any]], repeat: int) -> Replay:
    """A graph of `repeat` times some launches of PyTorch."""
    import torch

    for launch in launches:  # cuBLAS makes its workspace outside the capture
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeat):
            for launch in launches:
                launch()

    def replay(stream: Stream) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.handle)):
            graph.replay()

    return replay


def sdpa(q: Any, k: Any, v: Any, backend: str, causal: bool) -> Callable[[], Any]:
    """PyTorch's fused attention: FLASH_ATTENTION is FlashAttention-2, CUDNN_ATTENTION is cuDNN."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def launch() -> Any:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return scaled_dot_product_attention(q, k, v, is_causal=causal)

    return launch


def torch_stages(inputs: list[Any], repeat: int) -> tuple[dict[str, Replay], Any, str]:
    """The same parts through PyTorch: batched matmul, softmax, batched matmul (cuBLAS), and its fused kernels."""
    import torch

    q4, k4, v4 = (torch.from_numpy(x).cuda() for x in inputs)
    q, k, v = (x.flatten(0, 1) for x in (q4, k4, v4))
    s = torch.empty(BATCH * HEADS, SEQLEN, SEQLEN, dtype=torch.float16, device="cuda")
    p, o = torch.empty_like(s), torch.empty_like(q)
    stages: dict[str, Callable[[], Any]] = {
        "qk": lambda: torch.baddbmm(s, q, k.mT, beta=0, alpha=HEAD_DIM**-0.5, out=s),
        "softmax": lambda: torch.softmax(s, -1, out=p),
        "pv": lambda: torch.bmm(p, v, out=o),
    }
    parts = {name: [stage] for name, stage in stages.items()} | {"unfused": list(stages.values())}
    parts |= {"flash": [sdpa(q4, k4, v4, "FLASH_ATTENTION", False)]}
    graphs = {name: torch_graph(part, repeat) for name, part in parts.items()}
    name = f"PyTorch {torch.__version__}: cuBLAS of CUDA {torch.version.cuda}; for flash FlashAttention-2"
    return graphs, o.cpu().numpy().reshape(inputs[0].shape), name


def suite_reference(args: argparse.Namespace) -> dict[str, Any]:
    """The reference problem, stage by stage."""
    device = Device.get(0)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((BATCH, HEADS, SEQLEN, HEAD_DIM)).astype(np.float16) for _ in range(3)]
    q, k, v = (view_of(x, name) for x, name in zip(inputs, "qkv"))
    problem = make_problem(q, k, v, NewArray("out", q.shape, q.dtype), layout="bhsd")
    true = reference.truth(*inputs, problem.softmax_scale, causal=False)
    run = StagedAttention(problem, inputs, device)
    results = run.compute()
    errors = {
        part: float(np.abs(results[output] - getattr(true, output.split()[-1])).max())
        for part, output in run.outputs.items()
    }
    if not max(errors.values()) < MAX_ERROR:
        sys.exit(f"error: our result is wrong, not timed: {errors}")
    candidates: dict[str, Replay] = {f"ours {part}": run.graph(args.repeat, part).replay for part in run.parts}
    peer: dict[str, Any] = {"name": None, "why": "PyTorch is not importable"}
    try:
        graphs, out, name = torch_stages(inputs, args.repeat)
    except ImportError:
        pass
    else:
        error = float(np.abs(out - true.o).max())
        note = "its scores are rounded to float16, as the batched GEMM writes them"
        peer = {"name": name, "max_error": error, "note": note}
        if error < 10 * MAX_ERROR:
            candidates |= {f"peer {s}": replay for s, replay in graphs.items()}
    times = interleaved_us(candidates, run.stream, args.repeat, args.rounds)
    rows = []
    for stage in run.parts:
        row: dict[str, Any] = {"stage": stage, "stem": run.stems.get(stage), "max_error": errors[stage]}
        for who in ("ours", "peer"):
            if samples := times.get(f"{who} {stage}"):
                row[f"{who}_us"], row[f"{who}_us_5_to_95_percent"] = spread(samples)
        row["predecessor_l4_us"] = PREDECESSOR_L4_US.get(stage)
        rows.append(row)
    return {
        "suite": "reference",
        "problem": {"batch": BATCH, "num_heads": HEADS, "seqlen": SEQLEN, "head_dim": HEAD_DIM, "dtype": "float16"},
        "conditions": conditions(device, args)
        | {"l2": "warm: the problem's 2 MB and its scores fit the L2, as they do between the kernels of a model"},
        "peer": peer,
        "rows": rows,
    }


GRID = [
    (d, causal, s) for d in (64, 128, 256) for causal in (False, True) for s in (512, 1024, 2048, 4096, 8192, 16384)
]
TOKENS, WIDTH = 16384, 2048  # batch · seqlen, heads · head_dim


def suite_forward(args: argparse.Namespace) -> dict[str, Any]:
    """The fused kernel over the grid of 36 points, beside FlashAttention-2 and cuDNN through PyTorch."""
    import torch

    device, generator = Device.get(0), torch.Generator(device="cuda").manual_seed(0)
    stream, rows = Stream(device), []
    for head_dim, causal, seqlen in GRID:
        shape = TOKENS // seqlen, WIDTH // head_dim, seqlen, head_dim
        q, k, v = (torch.randn(shape, device="cuda", generator=generator).half() for _ in range(3))
        out = torch.full_like(q, torch.nan)
        torch.cuda.synchronize()
        views = [view_of(x, name) for x, name in ((q, "q"), (k, "k"), (v, "v"), (out, "out"))]
        problem = make_problem(*views, causal=causal, layout="bhsd")
        (kernel,) = select(problem, device.arch, "flash", device)
        addresses = {name: view.address for name, view in zip("qkvo", views)}
        (launch,) = plan_flash(device, kernel, problem, addresses)
        peers = {name: sdpa(q, k, v, backend, causal) for name, backend in PEERS.items()}
        with device.active():
            launch(stream)
        stream.synchronize()
        chosen = torch.arange(0, seqlen, max(seqlen // 64, 1), device="cuda")
        scores = q[0, 0, chosen].double() @ k[0, 0].double().mT * problem.softmax_scale
        if causal:
            scores.masked_fill_(torch.arange(seqlen, device="cuda") > chosen[:, None], -torch.inf)
        true = scores.softmax(-1) @ v[0, 0].double()
        errors = {"ours": (out[0, 0, chosen].double() - true).abs().max().item()}
        for name, peer in list(peers.items()):
            try:
                errors[name] = (peer()[0, 0, chosen].double() - true).abs().max().item()
            except RuntimeError as refusal:
                if name == "FA2":
                    raise
                del peers[name]
                print(f"{name} refuses {shape}: {refusal}", file=sys.stderr)
        if out.isnan().any() or not errors["ours"] <= 2 * errors["FA2"] + 2**-11 * true.abs().max().item():
            sys.exit(f"error: our result is wrong at {shape}, causal {causal}, not timed: {errors}")
        repeat = max(1, round(2e8 / problem.flops * 5e3))  # some milliseconds a replay
        with device.active(), Graph.capture(stream) as graph:
            for _ in range(repeat):
                launch(stream)
        candidates = {"ours": graph.replay} | {name: torch_graph([peer], repeat) for name, peer in peers.items()}
        times = interleaved_us(candidates, stream, repeat, args.rounds)
        row: dict[str, Any] = {"head_dim": head_dim, "causal": causal, "seqlen": seqlen, "stem": kernel.stem}
        row |= {"max_error": errors, "us": {}, "us_5_to_95_percent": {}, "tflops": {}}
        for name, samples in times.items():
            row["us"][name], row["us_5_to_95_percent"][name] = spread(samples)
            row["tflops"][name] = problem.flops / row["us"][name] / 1e6
        ratios = sorted(theirs / mine for theirs, mine in zip(times["FA2"], times["ours"]))
        row["ratio_to_fa2"] = row["us"]["FA2"] / row["us"]["ours"]
        row["ratio_to_fa2_least_and_largest"] = [ratios[0], ratios[-1]]
        rows.append(row)
        print(f"\r{len(rows)} of {len(GRID)} points", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        "suite": "forward",
        "conditions": conditions(device, args)
        | {
            "l2": "not flushed: q, k, v and o are 67 MB each, the L2 has 60 MB",
            "repeat": "some milliseconds a replay",
            "inputs": "standard normal, float16",
        },
        "peers": {
            "FA2": f"PyTorch {torch.__version__} SDPA flash",
            "cuDNN": f"SDPA cuDNN {torch.backends.cudnn.version()}",
        },
        "geometric_mean_ratio_to_fa2": float(np.exp(np.mean([np.log(r["ratio_to_fa2"]) for r in rows]))),
        "rows": rows,
    }


def print_forward(found: dict[str, Any]) -> None:
    print(f"{found['conditions']['gpu']}, TFLOP/s; {found['peers']}")
    print(f"{'head_dim':>8} {'causal':>6} {'seqlen':>6} {'ours':>6} {'FA2':>6} {'cuDNN':>6} {'x FA2':>6}")
    for row in found["rows"]:
        rates = " ".join(f"{row['tflops'].get(name, 0):6.0f}" for name in ("ours", "FA2", "cuDNN"))
        print(f"{row['head_dim']:>8} {row['causal']!s:>6} {row['seqlen']:>6} {rates} {row['ratio_to_fa2']:6.3f}")
    print(f"geometric mean x FA2: {found['geometric_mean_ratio_to_fa2']:.3f}")


# (batch, heads, seqlen, head_dim), the implementation, and the seconds that the emulator may take
EMULATED = (
    ((1, 2, 128, 64), "unfused", 0.3),
    ((1, 2, 128, 64), "flash", 0.3),
    ((1, 8, 512, 64), "unfused", 15.0),
    ((1, 8, 512, 64), "flash", 8.0),
)


def suite_emulator(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of attention on the emulator, every check on: the host's time, not a GPU's."""
    rng = np.random.default_rng(0)
    rows = []
    for shape, impl, limit in EMULATED:
        q, k, v = (rng.standard_normal(shape).astype(np.float16) for _ in range(3))
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            fc.attention(q, k, v, layout="bhsd", impl=impl)
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "problem": shape,
                "impl": impl,
                "first_seconds": seconds[0],
                "seconds": min(seconds),
                "target_seconds": limit,
            }
        )
    return {
        "suite": "emulator",
        "conditions": {
            "device": Device.get(0).name,
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "date": datetime.date.today().isoformat(),
            "commit": args.commit,
            "checks": "all that are on by default: races, bounds, alignment, uninitialised reads, divergence",
            "timing": "wall time of one call on NumPy arrays, least of three; the first also parses the PTX",
        },
        "rows": rows,
    }


def print_emulator(found: dict[str, Any]) -> None:
    print(f"{found['conditions']['device']}, {found['conditions']['cpus']} CPUs")
    print(f"{'batch x heads x seqlen x head_dim':34} {'impl':8} {'seconds':>8} {'first':>8} {'target':>8}")
    for row in found["rows"]:
        name = " x ".join(map(str, row["problem"]))
        print(
            f"{name:34} {row['impl']:8} {row['seconds']:8.2f} {row['first_seconds']:8.2f} {row['target_seconds']:8.1f}"
        )


def print_reference(found: dict[str, Any]) -> None:
    print(f"{found['conditions']['gpu']}, peer: {found['peer']['name'] or found['peer']['why']}")
    print(f"{'stage':8} {'max error':>10} {'ours us':>9} {'peer us':>9} {'predecessor on L4, us':>22}")
    for row in found["rows"]:
        cell = lambda key, row=row: "-" if row.get(key) is None else f"{row[key]:.2f}"  # noqa: E731
        print(
            f"{row['stage']:8} {row['max_error']:10.1e} {cell('ours_us'):>9} {cell('peer_us'):>9} "
            f"{cell('predecessor_l4_us'):>22}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=["reference", "forward", "emulator"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    parser.add_argument("--repeat", type=int, default=50, help="launches in a graph (default: 50)")
    parser.add_argument("--rounds", type=int, default=40, help="timed replays of each graph (default: 40)")
    parser.add_argument("--commit", default=git_commit(), help="the commit that is measured (default: from git)")
    args = parser.parse_args()
    suites = {
        "reference": (suite_reference, print_reference),
        "forward": (suite_forward, print_forward),
        "emulator": (suite_emulator, print_emulator),
    }
    try:
        Device.get(0)
    except (fc.NoDriverError, fc.DriverError) as error:
        sys.exit(f"error: {error}")
    if is_emulated() != (args.suite == "emulator"):
        need = "FLASHCORE_DRIVER=emulator" if args.suite == "emulator" else "a GPU: emulated time says nothing of it"
        sys.exit(f"error: the suite {args.suite} needs {need}")
    measure, show = suites[args.suite]
    found = measure(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


if __name__ == "__main__":
    main()
