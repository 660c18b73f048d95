"""Errors of every implementation on the same inputs, for every dtype and head_dim: nothing is timed."""

from __future__ import annotations

from itertools import product

from flashcore_drv.dtypes import BF16, F16, DType

from .cases import Case, Pool, Truth, elements, every_row
from .conditions import gpu_state
from .headline import AMPERE_PEERS, HOPPER_PEERS
from .measure import rounded
from .peers import find, first_line
from .results import OURS, SM_90, Json
from .suites import Run, table
from .timed import PEER_SLACK, Checks

NEEDS = "gpu"
PACKAGES = ("torch", "flash-attn-4", "nvidia-cudnn-frontend")
PEERS = (*AMPERE_PEERS, *HOPPER_PEERS)
HEAD_DIMS = (32, 64, 96, 128, 192, 256)
HEADS, SEQLEN = 4, 1024
METHOD = {
    "error": "of every element against float64 on the very inputs (flashcore_drv.reference): the largest, and the root "
    "mean square",
    "inputs": f"independent standard normal; batch 1, {HEADS} heads, {SEQLEN} queries and keys",
    "correctness": "ours within twice the error of the same maths at the kernels' precision, plus one ulp; peers: "
    f"{PEER_SLACK:g} times that",
}


def case_of(head_dim: int, causal: bool, dtype: DType) -> Case:
    """The problem of a row."""
    name = f"d{head_dim}-{'causal' if causal else 'full'}-{dtype}"
    return Case(name, 1, HEADS, HEADS, SEQLEN, SEQLEN, head_dim, causal, dtype)


def cases(quick: bool) -> list[Case]:
    """The points; quick: full attention alone."""
    masks = (False,) if quick else (False, True)
    return [case_of(d, causal, dtype) for dtype, d, causal in product((F16, BF16), HEAD_DIMS, masks)]


def ids(quick: bool) -> list[str]:
    """The rows."""
    return [case.id for case in cases(quick)]


def run(run: Run) -> None:
    """Compute each point with every implementation."""
    assert run.device is not None
    asked = run.peers if run.peers is not None else AMPERE_PEERS + HOPPER_PEERS[:1] if run.quick else PEERS
    found, run.record.peers = find(asked)
    checks = Checks(run.device, found, run.record.suite)
    todo = {case.id: case for case in cases(run.quick)}
    for name in run.progress(run.wanted(todo)):
        run.record.add(row(checks, todo[name]))
    run.record.conditions["after"] = gpu_state(run.device)
    run.record.save()


def row(checks: Checks, case: Case) -> Json:
    """The errors on a case."""
    pool = Pool(checks.device, case.dtype, elements(case))
    tensors = pool.tensors(case)
    truth = Truth(tensors, every_row)
    own, _, made = checks.own([tensors], truth)
    made |= {name: {"stem": ours.stem} | errors(truth, ours.rows) for name, ours in own.items()}
    members: dict[str, Json] = {}
    if OURS in own:
        for name, prepared, _ in checks.checked_peers([tensors], truth, members):
            try:
                members[name] = errors(truth, prepared.rows)
            except Exception as error:  # whatever a peer's library raises is its refusal
                members[name] = {"refused": first_line(error)}
    pool.free()
    peers = {name: members[name] for name in checks.peers if name in members}
    return {"id": case.id, "problem": case.to_json(), **made, "peers": peers}


def errors(truth: Truth, rows: object) -> Json:
    """The members of an implementation."""
    return {name: rounded(x) for name, x in zip(("max_error", "rms_error"), truth.errors(rows))}


def lines(found: Json) -> list[str]:
    """Errors, and how many times ours a peer's are."""
    names = [name for name, peer in found["peers"].items() if "absent" not in peer]
    families = [name for name in (OURS, SM_90) if any(name in row for row in found["rows"])]
    rows = []
    for row in found["rows"]:
        implementations = [row.get(name, {}) for name in families] + [row["peers"].get(name, {}) for name in names]
        rows.append([row["id"], *(cell(x) for x in implementations)])
    return table(["largest, root mean square", *families, *names], rows)


def cell(found: Json) -> str:
    """Both errors, or why there are none."""
    if "max_error" not in found:
        return next(iter(found), "-")
    return f"{found['max_error']:.2e} {found['rms_error']:.3e}"
