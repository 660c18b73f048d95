"""Latency: problems that do not fill the GPU, or barely."""

from __future__ import annotations

from flashcore_drv.dtypes import F16

from . import timed
from .cases import Case, Pool, elements
from .results import Json
from .suites import Run, table
from .timed import Bench

NEEDS = "gpu"
PACKAGES = ("torch", "flash-attn-4", "nvidia-cudnn-frontend")
PEERS = ("FA2", "cuDNN", "FA4", "cudnn-frontend", "efficient", "math", "cuBLAS")
QUICK_PEERS = ("FA2", "cuDNN", "FA4", "cudnn-frontend", "efficient")
ROTATED_L2 = 2  # times the L2 that the rotated sets hold together
METHOD = timed.METHOD | {
    "l2": "warm: us and ratio are of one set of inputs that stays in the L2, as between the kernels of a model; "
    f"rotated: launches go through sets of inputs of {ROTATED_L2} times the L2 together",
}
SIZES = ((1, 8, 512, 64), (2, 8, 512, 64), (1, 8, 128, 64), (1, 16, 1024, 64), (1, 32, 512, 128))
CASES = [
    Case(f"b{batch}-h{heads}-s{seqlen}-d{head_dim}-f16", batch, heads, heads, seqlen, seqlen, head_dim, False, F16)
    for batch, heads, seqlen, head_dim in SIZES
]


def ids(quick: bool) -> list[str]:
    """The rows."""
    return [case.id for case in CASES]


def sets(case: Case, l2_bytes: int) -> int:
    """Sets of inputs that exceed the L2 together."""
    return -(-ROTATED_L2 * l2_bytes // (elements(case) * case.dtype.itemsize))


def run(run: Run) -> None:
    """Measure what is wanted, with the inputs in the L2 and not in it."""
    wanted = set(run.wanted(ids(run.quick)))
    todo = [case for case in CASES if case.id in wanted]
    bench = Bench(run, QUICK_PEERS if run.quick else PEERS)
    l2_bytes = bench.device.attribute("L2_CACHE_SIZE")
    if todo:
        pool = Pool(bench.device, F16, max(sets(case, l2_bytes) * elements(case) for case in todo))
        for case, _ in zip(todo, run.progress([case.id for case in todo])):
            rotated = [pool.tensors(case, i * elements(case)) for i in range(sets(case, l2_bytes))]
            run.record.add(bench.row(case, rotated[:1], rotated))
    bench.finish()


def lines(found: Json) -> list[str]:
    """The table, and that of the times with rotated inputs."""
    rows = []
    for row in found["rows"]:
        members = {"ours": row["ours"], **row["peers"]}
        for name, member in members.items():
            if "rotated" in member:
                ratio = "" if name == "ours" else timed.cell(member["rotated"])
                rows.append([row["id"], name, timed.cell(member["rotated"], "us"), ratio])
    if not rows:
        return timed.lines(found)
    return [*timed.lines(found), "", *table(["inputs not in the L2", "", "us", "x"], rows)]
