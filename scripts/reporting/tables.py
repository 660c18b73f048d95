"""The README's tables: each a function from the results of a suite to the lines of its block."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmark.headline import HEADLINES, geometric_mean, has_sm_90, ratio_to_best, ratios
from benchmark.results import OURS, RATIOS, SLOWDOWNS, SM_90, reason_of

from .data import Suite

Row = dict[str, Any]

GRID_TOKENS, GRID_WIDTH = 16384, 2048  # batch · seqlen and heads · head_dim of the grid of the suite `forward`


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def prose(text: str) -> list[str]:
    """The lines of a paragraph, and an empty one."""
    return [*textwrap.wrap(text, 120, break_on_hyphens=False), ""]


def source(suite: Suite, text: str) -> list[str]:
    """The paragraph above a table: what it shows, and where that comes from."""
    conditions = suite.conditions
    where = [conditions[name] for name in ("gpu",) if name in conditions]
    where += ["a quick run"] if conditions.get("quick") else []
    where += [f"commit {conditions['commit']}", conditions["date"], f"`{suite.path}`"]
    return prose(f"{text} ({', '.join(where)})")


def left_out(suite: Suite) -> list[str]:
    """What the tables do not show because it was wrong or could not be measured, each reason once."""
    reasons: dict[str, list[str]] = {}
    for row in suite.found["rows"]:
        own = {"flashcore_drv": row[OURS]} | ({f"flashcore_drv {SM_90}": row[SM_90]} if SM_90 in row else {})
        for name, found in {**own, **row["peers"]}.items():
            if kind := reason_of(found):
                reasons.setdefault(f"{name} {kind}: {found[kind]}", []).append(row["id"])
    for name, reason in suite.found.get("skipped", {}).items():
        reasons.setdefault(f"not measured: {reason}", []).append(name)
    return [f"- {reason} ({', '.join(ids)})" for reason, ids in reasons.items()]


def block(suite: Suite) -> str:
    """What stands between the markers of a suite."""
    lines = BLOCKS[suite.found["suite"]](suite)
    if missing := left_out(suite):
        lines += ["", "Not in the table:", "", *missing]
    return "\n".join(["", *lines, "", ""])


def image(name: str, text: str) -> list[str]:
    """The lines that show a plot."""
    return [f"![{text}](docs/plots/{name}.svg)", ""]


def shape(problem: Row) -> str:
    """A problem in one line, for example ``4 × 32/8 × 4096 × 128 causal bf16``."""
    heads = str(problem["num_heads"])
    if problem["num_heads_kv"] != problem["num_heads"]:
        heads += f"/{problem['num_heads_kv']}"
    lengths = str(problem["seqlen_q"])
    if problem.get("varlen"):
        lengths = f"{min(problem['varlen'])}–{max(problem['varlen'])}"
    elif problem["seqlen_k"] != problem["seqlen_q"]:
        lengths += f"/{problem['seqlen_k']}"
    name = f"{problem['batch']} × {heads} × {lengths} × {problem['head_dim']}"
    name += " causal" if problem["causal"] else ""
    name += {"float16": "", "bfloat16": " bf16"}.get(problem["dtype"], f" {problem['dtype']}")
    return name + (" varlen" if problem.get("varlen") else "")


def number(x: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 0 if x >= 100 else 1 if x >= 10 else 2
    return f"{x:.{digits}f}"


def us_and_ratio(timed: Row | None) -> str:
    """The cell of a peer: its microseconds, and how many times ours that is, of each of our families."""
    if timed is None:
        return "–"
    if "us" not in timed:
        return next(iter(timed))  # wrong, refused
    found = [f"{timed[ratio]:.2f}×" for ratio in RATIOS.values() if ratio in timed]
    return number(timed["us"]) + (f" ({', '.join(found)})" if found else "")


def in_grid(row: Row) -> bool:
    """Whether a row of `forward` is one of the 36 points."""
    p = row["problem"]
    return bool(
        p["dtype"] == "float16"
        and not p.get("varlen")
        and p["num_heads"] == p["num_heads_kv"]
        and p["num_heads"] * p["head_dim"] == GRID_WIDTH
        and p["seqlen_q"] == p["seqlen_k"]
        and p["batch"] * p["seqlen_q"] == GRID_TOKENS
    )


def panel(row: Row) -> tuple[int, bool]:
    """(head_dim, causal) of a row: where it belongs in the grid."""
    return row["problem"]["head_dim"], row["problem"]["causal"]


FAMILIES = {
    OURS: "the kernels for compute capability 8.0 and later",
    SM_90: "the kernels for Hopper alone (sm_90)",
}


def families(rows: Sequence[Row]) -> list[str]:
    """Our families that were timed in any of the rows."""
    return [OURS, SM_90] if has_sm_90(rows) else [OURS]


def forward(suite: Suite) -> list[str]:
    """Rates over the grid, ratios to each peer, and the other problems."""
    rows = [row for row in suite.rows if in_grid(row)]
    others = [row for row in suite.rows if not in_grid(row)]
    both = families(suite.rows)
    lines = image("forward", "TFLOP/s over sequence length")
    for member in both:
        lines += grid(suite, rows, member, len(both) > 1)
    lines += ["Time of each peer over ours on these points (above 1 ours is faster):", ""]
    lines += table(
        ["peer", "version", *(["ours"] if len(both) > 1 else []), "points", "geometric mean", "least", "largest"],
        [line for member in both for line in peer_lines(suite, rows, member, len(both) > 1)],
    )
    peers = list(suite.peers)
    if others:
        lines += ["", "Other problems, TFLOP/s and in brackets times that peer; batch × heads × seqlen × head_dim:", ""]
        head = ["problem", "ours", *([SM_90] if len(both) > 1 else []), *peers]
        lines += table(head, [rates(row, peers, both) for row in others])
        if len(both) > 1:
            lines += ["", "In brackets first times ours, then times sm_90."]
    if any(row["problem"].get("varlen") and "us" in row["peers"].get("cuDNN", {}) for row in others):
        lines += ["", "cuDNN's call on packed sequences cannot be captured in a graph: its time has the host's in it."]
    return lines


def peer_lines(suite: Suite, rows: Sequence[Row], member: str, named: bool) -> list[list[str]]:
    """The ratios of the grid to every peer, and to the best of those that a family is held to."""
    groups = {peer: ((peer,), suite.peers[peer]["version"]) for peer in suite.peers}
    if len(bar := [peer for peer in HEADLINES[member] if peer in suite.peers]) > 1:
        groups[f"the best of {', '.join(bar)}"] = (tuple(bar), "at each point")
    lines = []
    for name, (names, version) in groups.items():
        if values := ratios(rows, names, member):
            numbers = (geometric_mean(values), min(values), max(values))
            who = [FAMILIES[member]] if named else []
            lines.append([name, version, *who, str(len(values)), *(f"{x:.2f}" for x in numbers)])
    return lines


def grid(suite: Suite, rows: Sequence[Row], member: str, named: bool) -> list[str]:
    """The table of the 36 points for one of our families, with the ratio to what it is held to."""
    held_to = [peer for peer in HEADLINES[member] if peer in suite.peers] or list(suite.peers)[:1]
    lengths = sorted({row["problem"]["seqlen_q"] for row in rows})
    by_place = {(*panel(row), row["problem"]["seqlen_q"]): row for row in rows}

    def cell(row: Row | None) -> str:
        if row is None or "us" not in row.get(member, {}):
            return "–"
        ratio = ratio_to_best(row, held_to, member)
        return f"{row[member]['tflops']:.0f}" + (f" ({ratio:.2f})" if ratio is not None else "")

    places = [
        [f"{d} {'causal' if causal else 'full'}", *(cell(by_place.get((d, causal, s))) for s in lengths)]
        for d, causal in sorted({panel(row) for row in rows})
    ]
    what = held_to[0] if len(held_to) == 1 else f"the best of {', '.join(held_to)}"
    bracket = f", and in brackets how many times {what}" if held_to else ""
    who = FAMILIES[member] if named else "the fused kernel"
    text = f"TFLOP/s of {who}{bracket}: float16, 16 k tokens, heads · head_dim 2048, by sequence length."
    lines = source(suite, text) if member == OURS else prose(text)
    return [*lines, *table(["head_dim", *map(str, lengths)], places), "", *share_of_ceilings(suite, rows, member)]


def rates(row: Row, peers: Sequence[str], both: Sequence[str]) -> list[str]:
    """The cells of a row in TFLOP/s."""
    cells = [shape(row["problem"])]
    for member in both:
        timed = row.get(member, {})
        cells.append(f"{timed['tflops']:.0f}" if "us" in timed else reason_of(timed) or "–")
    for peer in peers:
        timed = row["peers"].get(peer)
        if timed is None or "us" not in timed:
            cells.append(us_and_ratio(timed))
        else:
            cells.append(
                f"{timed['tflops']:.0f} ({', '.join(f'{timed[r]:.2f}' for r in RATIOS.values() if r in timed)})"
            )
    return cells


def share_of_ceilings(suite: Suite, rows: Sequence[Row], member: str) -> list[str]:
    """The best rate as a share of what this GPU reached without attention in the same run."""
    names = {"mma_sync_tflops": "`mma.sync` reaches from registers", "gemm_tflops": "a cuBLAS GEMM reaches"}
    shares = []
    best = max((row[member]["tflops"] for row in rows if "us" in row.get(member, {})), default=0)
    for key, text in names.items():
        if key in suite.ceilings:
            shares.append(f"{best / suite.ceilings[key]:.0%} of the {suite.ceilings[key]:.0f} TFLOP/s that {text}")
    return prose(f"The highest rate is {' and '.join(shares)} in the same run.") if shares else []


def reference(suite: Suite) -> list[str]:
    """The parts of the reference problem."""
    peers = list(suite.peers)
    quoted = {name: x["where"] for row in suite.rows for name, x in row.get("quoted", {}).items()}
    text = (
        "µs for batch 1, 8 heads, 512 queries and keys, head_dim 64, and in brackets how many times ours a peer takes."
    )
    text += BOTH if has_sm_90(suite.rows) else ""
    text += "".join(f" Quoted as {name}: {where}." for name, where in quoted.items())
    rows = [
        [
            row["part"],
            f"{row['ours']['max_error']:.1e}",
            number(row["ours"]["us"]),
            *own_us(row, suite.rows),
            *(us_and_ratio(row["peers"].get(peer)) for peer in peers),
            *(number(row["quoted"][name]["us"]) if name in row.get("quoted", {}) else "–" for name in quoted),
        ]
        for row in suite.rows
    ]
    head = ["part", "max error", "ours", *families(suite.rows)[1:], *peers, *quoted]
    return [*image("latency", "µs a call"), *source(suite, text), *table(head, rows)]


BOTH = (
    " ours: kernels for compute capability 8.0 and later; sm_90: for Hopper alone; in brackets times the one, then "
    "times the other."
)


def own_us(row: Row, rows: Sequence[Row]) -> list[str]:
    """The cell of our second family, where it was timed in any of the rows."""
    timed = row.get(SM_90, {})
    return [number(timed["us"]) if "us" in timed else reason_of(timed) or "–"] if has_sm_90(rows) else []


def small(suite: Suite) -> list[str]:
    """Small shapes."""
    peers = list(suite.peers)
    text = "µs of GPU time a call, and in brackets how many times ours; batch × heads × seqlen × head_dim."
    text += BOTH if has_sm_90(suite.rows) else ""
    both = families(suite.rows)
    rows = [
        [
            shape(row["problem"]),
            number(row["ours"]["us"]),
            *own_us(row, suite.rows),
            *(us_and_ratio(row["peers"].get(peer)) for peer in peers),
            *(number(row[x]["rotated"]["us"]) if "rotated" in row.get(x, {}) else "–" for x in both),
        ]
        for row in suite.rows
    ]
    head = ["problem", "ours", *both[1:], *peers, *(f"{name}, inputs not in the L2" for name in both)]
    return [*source(suite, text), *table(head, rows)]


def cliff(suite: Suite) -> list[str]:
    """What the values of the scores cost."""
    base = {row["id"]: row for row in suite.rows}
    kinds = list(dict.fromkeys(row["scores"] for row in suite.rows if "slowdown" in row))
    places = {(*panel(row), row["scores"]): row for row in suite.rows if "slowdown" in row}

    def cell(row: Row | None) -> str:
        if row is None:
            return "–"
        ours = [f"{row[x]:.2f}" for x in SLOWDOWNS.values() if x in row]
        own = []
        for name in suite.peers:
            theirs, first = (x["peers"].get(name, {}) for x in (row, base[row["base"]]))
            if "us" in theirs and "us" in first:
                own.append(f"{name} {theirs['us'] / first['us']:.2f}")
        return ", ".join(ours) + (f" ({', '.join(own)})" if own else "")

    rows = [
        [f"{d} {'causal' if causal else 'full'}", *(cell(places.get((d, causal, kind))) for kind in kinds)]
        for d, causal in sorted({place[:2] for place in places})
    ]
    text = "Time over the time on random values of the same shape, by what the scores are; in brackets a peer's own."
    if has_sm_90(suite.rows):
        text += " First of the kernels for compute capability 8.0 and later, then of those for Hopper alone."
    return [*source(suite, f"{text} {suite.conditions['method']['inputs']}."), *table(["head_dim", *kinds], rows)]


def accuracy(suite: Suite) -> list[str]:
    """Errors on the same inputs."""
    both = [name for name in (OURS, SM_90) if any(name in row for row in suite.rows)]
    names = {OURS: "ours", SM_90: SM_90}

    def cell(found: Row | None) -> str:
        if found is None or "max_error" not in found:
            return "–" if found is None else reason_of(found) or "–"
        return f"{found['max_error'] * 1e4:.2f} ({found['rms_error'] * 1e6:.2f})"

    rows = [
        [
            "{} {} {}".format(panel(row)[0], "causal" if panel(row)[1] else "full", row["problem"]["dtype"]),
            *(cell(row.get(name)) for name in both),
            *(cell(row["peers"].get(name)) for name in suite.peers),
        ]
        for row in suite.rows
    ]
    text = (
        "Largest error against float64 in 1e-4, and in brackets the root mean square error in 1e-6, on the same inputs"
    )
    lines = source(suite, f"{text}: {suite.conditions['method']['inputs']}.")
    return [*lines, *table(["head_dim", *(names[name] for name in both), *suite.peers], rows)]


WAYS = {
    "bare_launch": "bare `cuLaunchKernelEx`, arguments prebuilt",
    "graph_replay": "replay of a graph of one call",
    "planned": "planned call",
    "one_shot": "`attention()` on device arrays with `out=`",
    "one_shot_cupy": "`attention()` on CuPy arrays with `out=`",
    "one_shot_jax": "`attention()` on JAX arrays with `out=`",
    "graph_replay_sm_90": "replay of a graph of one call, sm_90",
    "planned_sm_90": "planned call, sm_90",
    "one_shot_sm_90": "`attention()` on device arrays with `out=`, sm_90",
    "validation": "the first call of a problem besides: validation and selection",
}
"""How a call can be made, as keys of the rows of `host`, and in words."""


def host(suite: Suite) -> list[str]:
    """µs of host time a call."""
    rows, peers = suite.rows, list(suite.peers)

    def cell(timed: Row | None) -> str:
        if timed is None or "us" not in timed:
            return us_and_ratio(timed)
        low, high = timed["us_5_95"]
        multiple = f", {timed['times_bare']:.2f}× bare" if "times_bare" in timed else ""
        multiple += f", {timed['ratio']:.1f}× ours" if "ratio" in timed else ""
        return f"{number(timed['us'])} ({number(low)}–{number(high)}){multiple}"

    there = [way for way in WAYS if any(way in row["ours"] for row in rows)]
    ways = [[WAYS[way], *(cell(row["ours"].get(way)) for row in rows)] for way in there]
    theirs = [
        [f"{peer} ({suite.peers[peer]['version']})", *(cell(row["peers"].get(peer)) for row in rows)] for peer in peers
    ]
    text = "µs of host time a call (5 to 95 %); ours over a bare launch, peers over our one-shot call, round by round."
    lines = [*image("host", "µs of host time a call"), *source(suite, text)]
    return lines + table(["", *(shape(row["problem"]) for row in rows)], ways + theirs)


def cold(suite: Suite) -> list[str]:
    """Seconds of a fresh process until a step."""
    rows = suite.rows
    names = [("flashcore_drv", None), *((f"{name} ({peer['version']})", name) for name, peer in suite.peers.items())]

    def cell(row: Row, peer: str | None) -> str:
        timed = row["ours"] if peer is None else row["peers"].get(peer)
        if timed is None:
            return "–"
        if "seconds" not in timed:
            return next(iter(timed))
        return f"{timed['seconds']:.2f}" + (f" ({timed['ratio']:.1f}×)" if "ratio" in timed else "")

    text = (
        f"Seconds from the start of a fresh process, and how many times ours; {suite.conditions['method']['package']}."
    )
    return [
        *source(suite, text),
        *table(
            ["", *(row["id"].replace("_", " ") for row in rows)],
            [[name, *(cell(row, peer) for row in rows)] for name, peer in names],
        ),
    ]


def size(suite: Suite) -> list[str]:
    """Installed bytes, and those of the wheel where there was one."""
    row = next(row for row in suite.rows if row["id"] == "installed")

    def cells(name: str, found: Row) -> list[str]:
        largest = sorted(found["packages"].items(), key=lambda item: -item[1])[:4]
        parts = ", ".join(f"{package} {megabytes(nbytes)}" for package, nbytes in largest)
        ratio = f" ({found['ratio']:.0f}×)" if "ratio" in found else ""
        return [name, megabytes(found["bytes"]) + ratio, str(len(found["packages"])), parts]

    rows = [cells("flashcore_drv", row["ours"])]
    rows += [cells(f"{name} ({suite.peers[name]['version']})", found) for name, found in row["peers"].items()]
    rows += [
        [f"the wheel, {', '.join(wheel['ours']['packages'])}", megabytes(wheel["ours"]["bytes"]), "1", ""]
        for wheel in suite.rows
        if wheel["id"] == "wheel"
    ]
    text = "MB of the installed package with all that it requires (without the GPU's driver)."
    return [*source(suite, text), *table(["", "MB", "packages", "the largest"], rows)]


def megabytes(nbytes: int) -> str:
    """Millions of bytes."""
    return number(nbytes / 1e6)


BLOCKS: dict[str, Callable[[Suite], list[str]]] = {
    "forward": forward,
    "reference": reference,
    "small": small,
    "cliff": cliff,
    "accuracy": accuracy,
    "host": host,
    "cold": cold,
    "size": size,
}
"""The blocks of the README, by suite."""
