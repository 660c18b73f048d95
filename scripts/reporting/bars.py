"""What was asked of the numbers (issues 4 to 7) and what the newest results are: each bar met, missed or not measured.

A bar is missed as soon as one of its points is, and met only when all of its points were measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from benchmark.headline import AMPERE_PEERS, HOPPER_PEERS, geometric_mean, ratio_to_best
from benchmark.results import OURS, SLOWDOWNS, SM_90

from .data import Suite
from .tables import in_grid, number, panel, prose, shape, table

Row = dict[str, Any]
Suites = Mapping[str, Suite]

AUTO = "auto"
NAMES = {OURS: "ours", SM_90: "sm_90", AUTO: "what `attention()` takes"}
LEAST_SEQLENS = (4096, 8192, 16384)
ACCURACY_SLACK, CLIFF = 1.05, 1.15
ACCURACY_ROWS = 24  # two dtypes, six head_dims, full and causal


@dataclass(frozen=True)
class Bar:
    """One demand.

    Attributes
    ----------
    issue : int
        That makes it.
    what, wanted : str
        What is measured, and what it has to be.
    value : str or None
        What it is; None where nothing was measured.
    met : bool or None
        None where not all of it was measured and nothing of it is missed.
    """

    issue: int
    what: str
    wanted: str
    value: str | None = None
    met: bool | None = None


def judged(issue: int, what: str, wanted: str, value: str, ok: bool, complete: bool = True) -> Bar:
    """A bar of which something was measured."""
    return Bar(
        issue, what, wanted, value if complete else f"{value}, not all measured", ok if complete or not ok else None
    )


# ---- ratios of `forward`


Groups = tuple[tuple[str, ...], ...]
FA2: Groups = (AMPERE_PEERS,)
CUDNN_AND_FA4: Groups = (HOPPER_PEERS[:-1], HOPPER_PEERS[-1:])
"""Peers of which a point needs one of each group to be measured; the fastest of all counts."""


def measured(rows: Sequence[Row], groups: Groups, member: str) -> dict[str, float]:
    """The ratio to the fastest peer, by row, where every group has one."""
    there = [row for row in rows if all(ratio_to_best(row, group, member) is not None for group in groups)]
    everyone = [peer for group in groups for peer in group]
    return {row["id"]: x for row in there if (x := ratio_to_best(row, everyone, member)) is not None}


def least_ratio(
    issue: int, what: str, rows: Sequence[Row], groups: Groups, member: str, least: float, count: int, above: bool
) -> Bar:
    """Every point's ratio to the fastest of some peers."""
    wanted = f"{'above' if above else 'at least'} {least:.2f} at each of {count}"
    found = measured(rows, groups, member)
    if not found:
        return Bar(issue, what, wanted)
    worst = min(found, key=lambda name: found[name])
    below = sum(not (x > least if above else x >= least) for x in found.values())
    value = f"least {found[worst]:.3f} ({worst})" + (f", {below} of {len(found)} below" if below else "")
    return judged(issue, what, wanted, value, not below, len(found) == count)


def mean_ratio(
    issue: int, what: str, rows: Sequence[Row], groups: Groups, member: str, least: float, count: int
) -> Bar:
    """The geometric mean of the ratios."""
    values, wanted = list(measured(rows, groups, member).values()), f"at least {least:.2f}"
    if not values:
        return Bar(issue, what, wanted)
    mean = geometric_mean(values)
    if len(values) < count:  # a part says nothing of all
        return Bar(issue, what, wanted, f"{mean:.3f} of {len(values)} points, not all measured")
    return judged(issue, what, wanted, f"{mean:.3f}", mean >= least)


def kinds_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of `forward` beside the grid."""
    found: dict[str, list[Row]] = {"bf16": [], "GQA 32/8": [], "packed sequences": []}
    for row in rows:
        p = row["problem"]
        if p.get("varlen"):
            found["packed sequences"].append(row)
        elif p["num_heads"] != p["num_heads_kv"]:
            found["GQA 32/8"].append(row)
        elif p["dtype"] == "bfloat16":
            found["bf16"].append(row)
    return found


def at_places(rows: Sequence[Row], head_dim: int, causal: bool) -> list[Row]:
    """The points of the grid with long sequences."""
    return [row for row in rows if panel(row) == (head_dim, causal) and row["problem"]["seqlen_q"] in LEAST_SEQLENS]


# ---- by issue


def of_issue_4(suites: Suites, other: Mapping[str, Any]) -> Iterator[Bar]:
    """The benchmark itself."""
    wanted = "under 300 s"
    if "quick" in suites:
        rows = suites["quick"].found["rows"]
        seconds = sum(row["seconds"] for row in rows)
        parts = ", ".join(f"{row['id']} {row['seconds']:.0f}" for row in rows)
        yield judged(4, "all suites with --quick", wanted, f"{seconds:.0f} s ({parts})", seconds < 300, len(rows) >= 8)
    else:
        yield Bar(4, "all suites with --quick", wanted)
    what, wanted = "dispatch without a table, beside the best kernel of each problem", "within 10 %"
    ways = other.get("tuned", {}).get("time_beside_the_best_kernel", {}).get("hold_out", {})
    if "model" in ways:
        mean, worst = ways["model"]["mean"], ways["model"]["worst"]
        value = f"{100 * (mean - 1):.1f} % (geometric mean), {100 * (worst - 1):.1f} % at worst"
        yield judged(4, what, wanted, value, worst <= 1.1)
    else:
        yield Bar(4, what, wanted)
    what, wanted = "error of the predicted times over the grid", "known"
    beside = other.get("predicted", {}).get("measured", {})
    if "median_absolute_error" in beside:
        value = f"{100 * beside['median_absolute_error']:.0f} % (median), {100 * beside['worst_error']:.0f} % at worst"
        yield judged(4, what, wanted, value, True)
    else:
        yield Bar(4, what, wanted)


def of_issue_5(suites: Suites, other: Mapping[str, Any]) -> Iterator[Bar]:
    """The family for compute capability 8.0 and later, beside FlashAttention-2."""
    yield gpu_time(5, suites, "reference", OURS, 4.7)
    rows = suites["forward"].rows if "forward" in suites else []
    points = [row for row in rows if in_grid(row)]
    yield least_ratio(5, "36 points, times FA2", points, FA2, OURS, 1.0, 36, above=False)
    yield mean_ratio(5, "36 points, times FA2, geometric mean", points, FA2, OURS, 1.2, 36)
    for (d, causal), least in {(64, False): 1.25, (64, True): 1.35, (128, False): 1.14, (128, True): 1.38}.items():
        what = f"head_dim {d} {'causal' if causal else 'full'} from 4096 on, times FA2"
        yield least_ratio(5, what, at_places(points, d, causal), FA2, OURS, least, 3, above=False)
    for kind, here in kinds_of(rows).items():
        if kind != "packed sequences":
            yield least_ratio(5, f"{kind}, times FA2", here, FA2, OURS, 1.0, 6, above=False)
            yield mean_ratio(5, f"{kind}, times FA2, geometric mean", here, FA2, OURS, 1.2, 6)
    yield cliff(5, suites, OURS)
    yield from accuracy(5, suites, OURS, "FA2")
    yield from of_gpu_check(5, other, lambda stem: "_sm90" not in stem)


def of_issue_6(suites: Suites, other: Mapping[str, Any]) -> Iterator[Bar]:
    """Hopper's family, beside the better of cuDNN and FlashAttention-4."""
    rows = suites["forward"].rows if "forward" in suites else []
    points = [row for row in rows if in_grid(row)]
    best = "times the better of cuDNN and FA4"
    yield least_ratio(6, f"36 points, {best}", points, CUDNN_AND_FA4, SM_90, 1.0, 36, above=True)
    yield mean_ratio(6, f"36 points, {best}, geometric mean", points, CUDNN_AND_FA4, SM_90, 1.12, 36)
    for causal, rate, beside in ((False, 680, 655), (True, 650, 515)):
        yield long_rate(points, causal, rate, beside)
    for kind, here in kinds_of(rows).items():
        yield least_ratio(6, f"{kind}, {best}", here, CUDNN_AND_FA4, SM_90, 1.0, 6, above=False)
    yield gpu_time(6, suites, "b1-h8-s512-d64-f16", AUTO, 4.9)
    yield gpu_time(6, suites, "b1-h32-s512-d128-f16", AUTO, 8.0)
    yield gpu_time(6, suites, "b1-h16-s1024-d64-f16", AUTO, 10.0)
    yield dispatch(suites)
    yield cliff(6, suites, SM_90)
    yield from accuracy(6, suites, SM_90, "cuDNN")
    yield from of_gpu_check(6, other, lambda stem: "_sm90" in stem)


def of_issue_7(suites: Suites, other: Mapping[str, Any]) -> Iterator[Bar]:
    """What a call, a start and an installation cost."""
    rows = suites["host"].rows if "host" in suites else []
    row = next((row for row in rows if row["problem"]["seqlen_q"] == 512), None)
    ours = row["ours"] if row else {}
    for suffix in ("", f"_{SM_90}"):
        if suffix and f"planned{suffix}" not in ours:
            continue
        name = f", {SM_90}" if suffix else ""
        for way, what, most in (
            ("planned", "planned call", 1.2),
            ("graph_replay", "replay of a graph of one call", 0.6),
        ):
            wanted, timed = f"at most {most:.1f} × the bare launch", ours.get(way + suffix, {})
            if "times_bare" in timed:
                value = f"{timed['times_bare']:.2f} × ({number(timed['us'])} µs of {number(ours['bare_launch']['us'])})"
                yield judged(7, what + name, wanted, value, timed["times_bare"] <= most)
            else:
                yield Bar(7, what + name, wanted)
    for way, what in (("one_shot_cupy", "CuPy"), ("one_shot_jax", "JAX")):
        what, wanted, timed = f"`attention()` on {what} arrays", "at most the bare launch + 5 µs", ours.get(way, {})
        if "us" in timed:
            over = timed["us"] - ours["bare_launch"]["us"]
            value = f"bare + {number(over)} µs" if over >= 0 else f"bare − {number(-over)} µs"
            yield judged(7, what, wanted, value, over <= 5)
        else:
            yield Bar(7, what, wanted)
    for peer, (key, what) in product(
        ("FA2", "cuDNN", "cudnn-frontend", "JAX"), (("ratio_planned", "a planned call"), ("ratio", "`attention()`"))
    ):
        timed, what = (row["peers"].get(peer, {}) if row else {}), f"host time of {peer} over {what}"
        if key in timed:
            yield judged(7, what, "at least 5 ×", f"{timed[key]:.1f} ×", timed[key] >= 5)
        else:
            yield Bar(7, what, "at least 5 ×")
    yield cold(suites)
    what, wanted = "the wheel", "under 20 MB"
    wheel = next((r for r in suites["size"].rows if r["id"] == "wheel"), None) if "size" in suites else None
    if wheel is None:
        yield Bar(7, what, wanted)
    else:
        yield judged(7, what, wanted, f"{wheel['ours']['bytes'] / 1e6:.1f} MB", wheel["ours"]["bytes"] < 20e6)


ISSUES = (of_issue_4, of_issue_5, of_issue_6, of_issue_7)


# ---- kinds of bars


def gpu_time(issue: int, suites: Suites, name: str, member: str, most: float) -> Bar:
    """µs of GPU time of a problem; "reference" is that of the suite of this name. AUTO: of what the row says runs."""
    suite, found = ("reference", "reference-flash") if name == "reference" else ("small", name)
    rows = suites[suite].rows if suite in suites else []
    row = next((row for row in rows if row["id"] == found), None)
    wanted = f"at most {most:.1f} µs"
    timed = {} if row is None else row.get(row.get(AUTO, OURS) if member == AUTO else member, {})
    if row is None or "us" not in timed:
        return Bar(issue, f"{name}, GPU time of {NAMES[member]}", wanted)
    us = timed["us"]
    what = f"{shape(row['problem'])}, GPU time of {NAMES[member]}"
    return judged(issue, what, wanted, f"{us:.2f} µs", us <= most)


def long_rate(points: Sequence[Row], causal: bool, rate: float, beside: float) -> Bar:
    """TFLOP/s of head_dim 128 at 8192, as cuDNN's rate of the run allows."""
    what = f"head_dim 128 {'causal' if causal else 'full'}, 8192: times cuDNN"
    wanted = f"at least {rate / beside:.3f} ({rate} beside {beside} TFLOP/s)"
    row = next((r for r in points if panel(r) == (128, causal) and r["problem"]["seqlen_q"] == 8192), None)
    theirs = row["peers"].get("cuDNN", {}) if row else {}
    if row is None or "ratio_sm_90" not in theirs:
        return Bar(6, what, wanted)
    value = f"{theirs['ratio_sm_90']:.3f} ({row[SM_90]['tflops']:.0f} beside {theirs['tflops']:.0f} TFLOP/s)"
    return judged(6, what, wanted, value, theirs["ratio_sm_90"] >= rate / beside)


def dispatch(suites: Suites) -> Bar:
    """What attention() takes by itself, beside the faster of our families."""
    what, wanted = "the family that `attention()` takes, over the faster one", "within 10 % at each point"
    rows = [row for name in ("forward", "small") if name in suites for row in suites[name].rows if "auto" in row]
    if not rows:
        return Bar(6, what, wanted)
    found = {row["id"]: row[row["auto"]]["us"] / min(row[OURS]["us"], row[SM_90]["us"]) for row in rows}
    worst = max(found, key=lambda x: found[x])
    above = sum(x > 1.1 for x in found.values())
    value = f"{100 * (found[worst] - 1):.0f} % at worst ({worst}), {above} of {len(found)} above"
    return judged(6, what, wanted, value, not above)


def cliff(issue: int, suites: Suites, member: str) -> Bar:
    """The largest slowdown by values."""
    what, wanted, name = f"any values over random ones, {NAMES[member]}", f"at most {CLIFF:.2f}", SLOWDOWNS[member]
    found = {row["id"]: row[name] for row in suites["cliff"].rows if name in row} if "cliff" in suites else {}
    if not found:
        return Bar(issue, what, wanted)
    worst = max(found, key=lambda x: found[x])
    complete = len(found) == sum("base" in row or row["scores"] != "random" for row in suites["cliff"].found["rows"])
    complete = complete and not suites["cliff"].conditions["quick"]
    return judged(issue, what, wanted, f"{found[worst]:.2f} ({worst})", found[worst] <= CLIFF, complete)


def accuracy(issue: int, suites: Suites, member: str, peer: str) -> Iterator[Bar]:
    """Errors over those of a peer, for every dtype and head_dim."""
    rows = suites["accuracy"].rows if "accuracy" in suites else []
    both = [row for row in rows if "max_error" in row.get(member, {}) and "max_error" in row["peers"].get(peer, {})]
    for error, what in (("max_error", "largest error"), ("rms_error", "root mean square error")):
        name = f"{what} of {NAMES[member]} over {peer}'s"
        wanted = f"at most {ACCURACY_SLACK:.2f} at every dtype, head_dim and mask"
        if not both:
            yield Bar(issue, name, wanted)
            continue
        found = {row["id"]: row[member][error] / row["peers"][peer][error] for row in both}
        worst = max(found, key=lambda x: found[x])
        above = sum(x > ACCURACY_SLACK for x in found.values())
        value = f"{found[worst]:.3f} ({worst})" + (f", {above} of {len(found)} above" if above else "")
        yield judged(issue, name, wanted, value, not above, len(found) == ACCURACY_ROWS)


def of_gpu_check(issue: int, other: Mapping[str, Any], mine: Callable[[str], bool]) -> Iterator[Bar]:
    """What scripts/gpu_check.sh found: spills, compute-sanitizer, examples."""
    found = other.get("gpu_check", {})
    kernels = [k for k in found.get("resources", []) if mine(k["stem"])]
    examples = re.search(r"=(\d+) .*exit status (\d+)", found.get("tests", {}).get("features", ""))
    spills = "bytes that kernels spill", "none"
    tools = "compute-sanitizer", "no error of any tool"
    random = "hypothesis examples over all features", "2000, all right"
    if not kernels:
        yield from (Bar(issue, *demand) for demand in (spills, tools, random))
        return
    spilling = [k["stem"] for k in kernels if k["spill_bytes"]]
    value = f"{len(spilling)} of {len(kernels)} kernels spill" if spilling else f"none in {len(kernels)} kernels"
    yield judged(issue, *spills, value, not spilling)
    said = found["compute_sanitizer"]
    value = "; ".join(f"{tool}: {text}" for tool, text in said.items())
    yield judged(issue, *tools, value, all(text.startswith("0 ") for text in said.values()))
    if examples is None:
        yield Bar(issue, *random)
        return
    count, status = int(examples[1]), int(examples[2])
    value = f"{count}, {'all right' if status == 0 else 'not all right'}"
    yield judged(issue, *random, value, count >= 2000 and status == 0)


def cold(suites: Suites) -> Bar:
    """Seconds of a fresh process with the wheel until its first result, which is checked."""
    what, wanted = "fresh process from a wheel to its first result", "at most 0.7 s"
    suite = suites.get("cold")
    row = next((row for row in suite.rows if row["id"] == "first_result"), None) if suite else None
    if suite is None or row is None or ".whl" not in suite.conditions["method"]["package"]:
        return Bar(7, what, wanted)
    seconds = row["ours"]["seconds"]
    return judged(7, what, wanted, f"{seconds:.2f} s", seconds <= 0.7)


# ---- the block


def block(suites: Suites, other: Mapping[str, Any]) -> str:
    """The table of all bars, for between the markers."""
    said = {True: "yes", False: "**no**", None: "–"}
    bars = [bar for issue in ISSUES for bar in issue(suites, other)]
    counts = {met: sum(bar.met is met for bar in bars) for met in said}
    text = (
        f"Of {len(bars)} bars {counts[True]} are met and {counts[False]} missed; {counts[None]} are not measured, or "
        "not at all of their points. ours: the kernels for compute capability 8.0 and later; sm_90: those for Hopper "
        "alone. Ratios above 1: ours is faster."
    )
    rows = [[str(bar.issue), bar.what, bar.wanted, bar.value or "not measured", said[bar.met]] for bar in bars]
    return "\n".join(["", *prose(text), *table(["issue", "what", "wanted", "measured", "met"], rows), "", ""])
