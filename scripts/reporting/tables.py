"""The README's tables: each a function from the results of a suite to the lines of its block."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
        for name, found in {"flashcore_drv": row["ours"], **row["peers"]}.items():
            for kind in ("wrong", "refused"):
                if kind in found:
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
    """The cell of a peer: its microseconds, and how many times ours that is."""
    if timed is None:
        return "–"
    if "us" not in timed:
        return next(iter(timed))  # wrong, refused
    ratio = f" ({timed['ratio']:.2f}×)" if "ratio" in timed else ""
    return number(timed["us"]) + ratio


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


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


def ratios(rows: Sequence[Row], peer: str) -> list[float]:
    """How many times ours a peer takes, in the rows where it was timed."""
    return [row["peers"][peer]["ratio"] for row in rows if "ratio" in row["peers"].get(peer, {})]


def forward(suite: Suite) -> list[str]:
    """Rates over the grid, ratios to each peer, and the other problems."""
    rows = [row for row in suite.rows if in_grid(row)]
    others = [row for row in suite.rows if not in_grid(row)]
    lengths = sorted({row["problem"]["seqlen_q"] for row in rows})
    peers = list(suite.peers)
    first = peers[0] if peers else None

    def cell(row: Row | None) -> str:
        if row is None:
            return "–"
        timed = row["peers"].get(first, {}) if first else {}
        return f"{row['ours']['tflops']:.0f}" + (f" ({timed['ratio']:.2f})" if "ratio" in timed else "")

    by_place = {(*panel(row), row["problem"]["seqlen_q"]): row for row in rows}
    grid = [
        [f"{d} {'causal' if causal else 'full'}", *(cell(by_place.get((d, causal, s))) for s in lengths)]
        for d, causal in sorted({panel(row) for row in rows})
    ]
    bracket = f", and in brackets how many times {first}" if first else ""
    text = f"TFLOP/s of the fused kernel{bracket}: float16, 16 k tokens, heads · head_dim 2048, by sequence length."
    lines = [*image("forward", "TFLOP/s over sequence length"), *source(suite, text)]
    lines += [*table(["head_dim", *map(str, lengths)], grid), "", *share_of_ceilings(suite, rows)]
    lines += ["Time of each peer over ours on these points (above 1 ours is faster):", ""]
    found = {peer: values for peer in peers if (values := ratios(rows, peer))}
    lines += table(
        ["peer", "version", "points", "geometric mean", "least", "largest"],
        [
            [
                peer,
                suite.peers[peer]["version"],
                str(len(values)),
                *(f"{x:.2f}" for x in (geometric_mean(values), min(values), max(values))),
            ]
            for peer, values in found.items()
        ],
    )
    if others:
        lines += ["", "Other problems, TFLOP/s and in brackets times that peer; batch × heads × seqlen × head_dim:", ""]
        lines += table(["problem", "ours", *peers], [rates(row, peers) for row in others])
    if any(row["problem"].get("varlen") and "us" in row["peers"].get("cuDNN", {}) for row in others):
        lines += ["", "cuDNN's call on packed sequences cannot be captured in a graph: its time has the host's in it."]
    return lines


def rates(row: Row, peers: Sequence[str]) -> list[str]:
    """The cells of a row in TFLOP/s."""
    cells = [shape(row["problem"]), f"{row['ours']['tflops']:.0f}"]
    for peer in peers:
        timed = row["peers"].get(peer)
        if timed is None or "us" not in timed:
            cells.append(us_and_ratio(timed))
        else:
            cells.append(f"{timed['tflops']:.0f} ({timed['ratio']:.2f})")
    return cells


def share_of_ceilings(suite: Suite, rows: Sequence[Row]) -> list[str]:
    """The best rate as a share of what this GPU reached without attention in the same run."""
    names = {"mma_sync_tflops": "`mma.sync` reaches from registers", "gemm_tflops": "a cuBLAS GEMM reaches"}
    shares = []
    best = max((row["ours"]["tflops"] for row in rows), default=0)
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
    text += "".join(f" Quoted as {name}: {where}." for name, where in quoted.items())
    rows = [
        [
            row["part"],
            f"{row['ours']['max_error']:.1e}",
            number(row["ours"]["us"]),
            *(us_and_ratio(row["peers"].get(peer)) for peer in peers),
            *(number(row["quoted"][name]["us"]) if name in row.get("quoted", {}) else "–" for name in quoted),
        ]
        for row in suite.rows
    ]
    head = ["part", "max error", "ours", *peers, *quoted]
    return [*image("latency", "µs a call"), *source(suite, text), *table(head, rows)]


def small(suite: Suite) -> list[str]:
    """Small shapes."""
    peers = list(suite.peers)
    text = "µs of GPU time a call, and in brackets how many times ours; batch × heads × seqlen × head_dim."
    rows = [
        [
            shape(row["problem"]),
            number(row["ours"]["us"]),
            *(us_and_ratio(row["peers"].get(peer)) for peer in peers),
            number(row["ours"]["rotated"]["us"]) if "rotated" in row["ours"] else "–",
        ]
        for row in suite.rows
    ]
    return [*source(suite, text), *table(["problem", "ours", *peers, "ours, inputs not in the L2"], rows)]


def cliff(suite: Suite) -> list[str]:
    """What the values of the scores cost."""
    base = {row["id"]: row for row in suite.rows}
    kinds = list(dict.fromkeys(row["scores"] for row in suite.rows if "slowdown" in row))
    places = {(*panel(row), row["scores"]): row for row in suite.rows if "slowdown" in row}

    def cell(row: Row | None) -> str:
        if row is None:
            return "–"
        own = []
        for name in suite.peers:
            theirs, first = (x["peers"].get(name, {}) for x in (row, base[row["base"]]))
            if "us" in theirs and "us" in first:
                own.append(f"{name} {theirs['us'] / first['us']:.2f}")
        return f"{row['slowdown']:.2f}" + (f" ({', '.join(own)})" if own else "")

    rows = [
        [f"{d} {'causal' if causal else 'full'}", *(cell(places.get((d, causal, kind))) for kind in kinds)]
        for d, causal in sorted({place[:2] for place in places})
    ]
    text = "Time over the time on random values of the same shape, by what the scores are; in brackets a peer's own."
    return [*source(suite, f"{text} {suite.conditions['method']['inputs']}."), *table(["head_dim", *kinds], rows)]


WAYS = {
    "bare_launch": "bare `cuLaunchKernelEx`, arguments prebuilt",
    "graph_replay": "replay of a graph of one call",
    "planned": "planned call",
    "one_shot": "`attention()` on device arrays with `out=`",
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

    ways = [[name, *(cell(row["ours"].get(way)) for row in rows)] for way, name in WAYS.items()]
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
    """Installed bytes."""
    (row,) = suite.rows

    def cells(name: str, found: Row) -> list[str]:
        largest = sorted(found["packages"].items(), key=lambda item: -item[1])[:4]
        parts = ", ".join(f"{package} {megabytes(nbytes)}" for package, nbytes in largest)
        ratio = f" ({found['ratio']:.0f}×)" if "ratio" in found else ""
        return [name, megabytes(found["bytes"]) + ratio, str(len(found["packages"])), parts]

    rows = [cells("flashcore_drv", row["ours"])]
    rows += [cells(f"{name} ({suite.peers[name]['version']})", found) for name, found in row["peers"].items()]
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
    "host": host,
    "cold": cold,
    "size": size,
}
"""The blocks of the README, by suite."""
