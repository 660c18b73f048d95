"""The reference problem, part by part: the unfused stages, all of these, the fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flashcore_drv import reference
from flashcore_drv.dtypes import F16, F32
from flashcore_drv.interop import view_of
from flashcore_drv.operands import NewArray
from flashcore_drv.validation import make_problem

from . import timed
from .cases import Case, Tensors, Truth, every_row
from .conditions import SEED
from .measure import Sample, interleaved, repeat_for
from .peers import cublas_stages, torch_graph, torch_tensor
from .results import OURS, RATIOS, Json
from .staged import STAGES, StagedAttention
from .suites import Run
from .timed import Bench

NEEDS = "gpu"
PACKAGES = ("torch", "flash-attn-4", "nvidia-cudnn-frontend", "jax")
PEERS = ("FA2", "cuDNN", "FA4", "cudnn-frontend", "JAX", "efficient", "math", "cuBLAS")
QUICK_PEERS = ("FA2", "cuDNN", "FA4", "cudnn-frontend", "cuBLAS")
PREDECESSOR = "the predecessor of this project, its own record, NVIDIA L4: another GPU, no ratio is formed"
QUOTED = {"qk": 142.0, "pv": 57.0, "unfused": 199.0}
PARTS = (*STAGES, "unfused", "flash")
CASE = Case("reference", 1, 8, 8, 512, 512, 64, False, F16)
METHOD = timed.METHOD | {
    "l2": "warm: the problem's 2 MB and its scores fit the L2, as between the kernels of a model",
    "correctness": "before timing, every element of every part's output against float64 (flashcore_drv.reference: "
    "twice the error of the same maths at the kernels' precision, plus one ulp); peers: sampled rows, "
    f"{timed.PEER_SLACK:g} times that",
    "peers of stages": "cuBLAS through PyTorch (baddbmm, softmax, bmm), which writes scores in float16, not float32",
}


def name_of(part: str) -> str:
    """The row of a part."""
    return f"{CASE.id}-{part}"


def ids(quick: bool) -> list[str]:
    """The rows."""
    return [name_of(part) for part in PARTS]


def run(run: Run) -> None:
    """Measure all parts together, if one is wanted."""
    bench = Bench(run, QUICK_PEERS if run.quick else PEERS)
    if run.wanted(ids(run.quick)):
        for row in measure(bench, CASE):
            run.record.add(row)
    bench.finish()


def measure(bench: Bench, case: Case) -> list[Json]:
    """A row for each part, all candidates in turns."""
    rng = np.random.default_rng(SEED)
    inputs = [rng.standard_normal(case.shapes[x], np.float32).astype(case.dtype.to_numpy()) for x in "qkv"]
    q, k, v = (view_of(x, name) for x, name in zip(inputs, "qkv"))
    problem = make_problem(q, k, v, NewArray("out", q.shape, q.dtype), causal=case.causal, layout="bhsd")
    timed.collect_garbage()
    staged = StagedAttention(problem, inputs, bench.device, "unfused")
    tensors = Tensors(case, dict(zip("qkv", inputs)), {x: staged.arrays[x] for x in "qkv"})
    verdicts = judge(case, inputs, staged)
    rows: dict[str, Json] = {}
    samples: dict[tuple[str, str], Sample] = {}
    errors: dict[tuple[str, str], float] = {}
    stems: dict[str, dict[str, str | None]] = {}
    members: dict[str, dict[str, Json]] = {part: {} for part in PARTS}
    alive: list[object] = []  # a graph does not own the memory that it works on
    once = bench.timer(lambda stream: staged.launch("unfused"), 1)
    repeat = repeat_for((once(), once())[1] / 2, bench.replay_us)
    for part in PARTS:
        flops, nbytes = (case.flops, case.nbytes) if part == "flash" else staged.work(part)
        row: Json = {"id": name_of(part), "part": part, "problem": case.to_json(), "flops": flops, "bytes": nbytes}
        if part in QUOTED and case is CASE:
            row["quoted"] = {"predecessor": {"us": QUOTED[part], "where": PREDECESSOR}}
        rows[part], stems[part] = row, {}
        if part == "flash":
            own, own_errors, reasons = bench.own([tensors], Truth(tensors, every_row))
            row |= reasons
            if OURS in own:
                alive.append(own)
                stems[part] = {name: ours.stem for name, ours in own.items()}
                samples |= {(part, name): ours.sample(bench.timer, repeat) for name, ours in own.items()}
                errors |= {(part, name): own_errors[name] for name in own}
            continue
        verdict = verdicts[staged.outputs[part]]
        if not verdict.ok:
            what = f"error {verdict.error:.3g}, allowed {verdict.allowed:.3g}, misplaced {verdict.misplaced}"
            row[OURS] = {"wrong": what}
            continue
        stems[part] = {OURS: staged.stems.get(part)}
        errors[part, OURS] = verdict.error
        samples[part, OURS] = bench.timer(staged.graph(repeat, part).replay, repeat)
    if "cuBLAS" in bench.peers:
        add_stages(bench, tensors, repeat, samples, errors, alive)
    if ("flash", OURS) in samples:
        for name, prepared, error in bench.checked_peers([tensors], Truth(tensors), members["flash"]):
            with bench.refusals(name, members["flash"]):
                alive.append(prepared)
                samples["flash", name] = prepared.sample(bench.timer, repeat)
                errors["flash", name] = error
    times = interleaved(samples, bench.run.rounds)
    for part, row in rows.items():
        here = {who: us for (p, who), us in times.items() if p == part}
        row |= timed.timed_families(here, {who: errors[part, who] for who in here}, row, stems[part])
        for who in here.keys() - RATIOS.keys() if stems[part] else ():
            members[part][who] = timed.timed(
                here[who], errors[part, who], row, {name: here[name] for name in stems[part]}
            )
    return [row | {"peers": members[part]} for part, row in rows.items()]


def judge(case: Case, inputs: Sequence[Any], staged: StagedAttention) -> dict[str, reference.Verdict]:
    """Every output of the parts against float64."""
    q, k, v = inputs
    true = reference.truth(q, k, v, case.softmax_scale, causal=case.causal)
    same = reference.same_maths(q, k, v, case.dtype, case.softmax_scale, causal=case.causal)
    bits = {"s": F32, "p": case.dtype, "o": case.dtype, "lse": F32}
    verdicts = {}
    for name, result in staged.compute().items():
        kind = name.split()[-1]  # "flash o" is an o
        if kind in "spo":
            verdicts[name] = reference.judge(result, getattr(true, kind), getattr(same, kind), bits[kind].mantissa_bits)
    return verdicts


def add_stages(
    bench: Bench,
    tensors: Tensors,
    repeat: int,
    samples: dict[tuple[str, str], Sample],
    errors: dict[tuple[str, str], float],
    alive: list[object],
) -> None:
    """The unfused parts through cuBLAS, where they are right."""
    case = tensors.case
    q, k, v = (torch_tensor(tensors.device[name], case) for name in "qkv")
    stages, out = cublas_stages(case, q, k, v)
    calls: dict[str, list[Callable[[], Any]]] = {name: [stage] for name, stage in stages.items()}
    calls["unfused"] = [lambda: [stage() for stage in stages.values()]]
    calls["unfused"][0]()
    verdict = Truth(tensors).verdict(lambda b, h, rows: out[b, h, rows].double().cpu().numpy())
    alive += [q, k, v, out, stages]
    if verdict.error > timed.PEER_SLACK * verdict.allowed or verdict.misplaced:
        return  # the row of the fused kernel says so of the same peer
    for part, call in calls.items():
        samples[part, "cuBLAS"] = bench.timer(torch_graph(call, repeat), repeat)
        errors[part, "cuBLAS"] = verdict.error


def lines(found: Json) -> list[str]:
    """The table, and the times that are quoted."""
    quoted = [
        f"quoted: {row['id']}: {name} {x['us']:g} us ({x['where']})"
        for row in found["rows"]
        for name, x in row.get("quoted", {}).items()
    ]
    return [*timed.lines(found), *quoted]
