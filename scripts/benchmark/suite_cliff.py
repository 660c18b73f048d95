"""What the values of the scores cost: the same shape with scores that rise or fall, are all equal, have outliers.

The fused kernel adds up under a guessed origin and starts a tile again where the guess is too small, so its time can
depend on the values. A slowdown is our time over our time on random values of that shape, in the same rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from flashcore_drv.dtypes import F16

from . import timed
from .cases import Case, Pool, Tensors, Truth, elements, upload
from .conditions import SEED
from .measure import Sample, as_members, interleaved, paired
from .results import OURS, RATIOS, SLOWDOWNS, SM_90, Json
from .suites import Run, table
from .timed import Bench

NEEDS = "gpu"
PACKAGES = ("torch",)
PEERS = ("FA2",)
TOKENS, WIDTH, SEQLEN = 16384, 2048, 4096
HEAD_DIMS = (32, 64, 96, 128, 192, 256)
QUICK_HEAD_DIMS = (64, 128, 256)
TILE = 64  # keys
RISE = 25.0  # of the scores from a tile to the next, 36 bits
OUTLIERS, OUTLIER_FACTOR = 1 / 256, 16.0
METHOD = timed.METHOD | {
    "l2": "not flushed: a launch moves several times the L2",
    "inputs": "random: independent standard normal; rising and falling: the same, scores raised or lowered by "
    f"{RISE:g} every {TILE} keys, so that one of them rises in whatever order a kernel takes them; constant: every key "
    f"the same; outliers: one key in {round(1 / OUTLIERS)} times {OUTLIER_FACTOR:g}",
    "slowdown": "our time over our time on random values within a round: median and percentiles over the rounds",
}


def staircase(case: Case, host: dict[str, Any], rise: float) -> dict[str, Any]:
    """Scores that change by `rise` from tile to tile: the first column of q is constant, that of k a staircase."""
    q, k = host["q"].copy(), host["k"].copy()
    step = 2.0
    q[..., 0] = rise / (case.softmax_scale * step)
    k[..., 0] = step * (np.arange(case.seqlen_k) // TILE)
    return host | {"q": q, "k": k}


def constant(case: Case, host: dict[str, Any]) -> dict[str, Any]:
    """Every score of a row is the same."""
    return host | {"k": np.repeat(host["k"][:, :, :1], case.seqlen_k, axis=2)}


def outliers(case: Case, host: dict[str, Any]) -> dict[str, Any]:
    """A few keys with scores far from the others."""
    k = host["k"].copy()
    rng = np.random.default_rng(SEED)
    k[:, :, rng.random(case.seqlen_k) < OUTLIERS] *= k.dtype.type(OUTLIER_FACTOR)
    return host | {"k": k}


Values = Callable[[Case, dict[str, Any]], dict[str, Any]]
KINDS: dict[str, Values] = {
    "rising": lambda case, host: staircase(case, host, RISE),
    "falling": lambda case, host: staircase(case, host, -RISE),
    "constant": constant,
    "outliers": outliers,
}


def shape(head_dim: int, causal: bool, values: str) -> Case:
    """The problem of a row."""
    heads = WIDTH // head_dim
    name = f"d{head_dim}-{'causal' if causal else 'full'}-s{SEQLEN}-{values}"
    return Case(name, TOKENS // SEQLEN, heads, heads, SEQLEN, SEQLEN, head_dim, causal, F16)


def groups(quick: bool) -> list[list[Case]]:
    """Rows of the same shape, random first: they are measured together."""
    places = product(QUICK_HEAD_DIMS, (False,)) if quick else product(HEAD_DIMS, (False, True))
    return [[shape(d, causal, x) for x in ("random", *KINDS)] for d, causal in places]


def ids(quick: bool) -> list[str]:
    """The rows."""
    return [case.id for group in groups(quick) for case in group]


def run(run: Run) -> None:
    """Measure the groups of which a row is wanted."""
    wanted = set(run.wanted(ids(run.quick)))
    todo = [group for group in groups(run.quick) if any(case.id in wanted for case in group)]
    bench = Bench(run, PEERS)
    if todo:
        pool = Pool(bench.device, F16, max(elements(group[0]) for group in todo))
        for group, _ in zip(todo, run.progress([group[0].id for group in todo])):
            for row in measure(bench, group, pool.tensors(group[0])):
                run.record.add(row)
    bench.finish()


def measure(bench: Bench, group: list[Case], random: Tensors) -> list[Json]:
    """The rows of a shape, all candidates in turns; a wrong result leaves its row out of the timing."""
    rows: dict[str, Json] = {}
    members: dict[str, dict[str, Json]] = {}
    samples: dict[tuple[str, str], Sample] = {}
    errors: dict[tuple[str, str], float] = {}
    stems: dict[str, dict[str, str | None]] = {}
    alive: list[object] = []  # a graph does not own the memory that it works on
    repeat = 0
    timed.collect_garbage()
    for case, values in zip(group, ("random", *KINDS)):
        tensors = random if values == "random" else upload(case, KINDS[values](case, random.host), bench.device)
        truth = Truth(tensors)
        row: Json = {"id": case.id, "problem": case.to_json(), "flops": case.flops, "bytes": case.nbytes}
        own, own_errors, reasons = bench.own([tensors], truth)
        rows[values], members[values] = row | {"scores": values} | reasons, {}
        stems[values] = {name: ours.stem for name, ours in own.items()} if OURS in own else {}
        if not stems[values]:
            continue
        alive += [tensors, own]
        repeat = repeat or bench.repeat(own[OURS])
        for name, ours in own.items():
            samples[values, name], errors[values, name] = ours.sample(bench.timer, repeat), own_errors[name]
        for name, prepared, error in bench.checked_peers([tensors], truth, members[values]):
            with bench.refusals(name, members[values]):
                alive.append(prepared)
                samples[values, name] = prepared.sample(bench.timer, repeat)
                errors[values, name] = error
    times = interleaved(samples, bench.run.rounds)
    for values, row in rows.items():
        here = {who: us for (v, who), us in times.items() if v == values}
        row |= timed.timed_families(here, {who: errors[values, who] for who in here}, row, stems[values])
        for who in here.keys() - RATIOS.keys():
            own_times = {name: here[name] for name in stems[values]}
            members[values][who] = timed.timed(here[who], errors[values, who], row, own_times)
        for name in stems[values]:
            if values != "random" and ("random", name) in times and ("random", OURS) in times:
                row |= {"base": group[0].id} | as_members(SLOWDOWNS[name], paired(here[name], times["random", name]))
    return [row | {"peers": members[values]} for values, row in rows.items()]


def lines(found: Json) -> list[str]:
    """Slowdowns, ours and the peer's own."""
    names = [name for name, peer in found["peers"].items() if "absent" not in peer]
    families = [OURS, SM_90] if any(SM_90 in row for row in found["rows"]) else [OURS]
    base = {row["id"]: row for row in found["rows"]}
    rows = []
    for row in found["rows"]:
        cells = [row["id"]]
        for member in families:
            cells += [timed.cell(row.get(member), "us"), timed.cell(row, SLOWDOWNS[member])]
        for name in names:
            theirs, first = row["peers"].get(name, {}), base[row.get("base", row["id"])]["peers"].get(name, {})
            own = f"{theirs['us'] / first['us']:.2f}" if "us" in theirs and "us" in first else "-"
            cells += [timed.cell(theirs), own]
        rows.append(cells)
    head = ["row", *(x for name in families for x in (f"{name}: us", "slowdown"))]
    head += [x for name in names for x in (f"x {name}", f"slowdown of {name}")]
    return [*timed.heading(found), *table(head, rows), *timed.notes(found)]
