"""The plots as data: what each panel, line and bar is, without how it is drawn.

A figure is plain JSON data, so its digest says whether a drawing on disk still shows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from benchmark import results
from benchmark.headline import has_sm_90

from .data import Suite
from .tables import WAYS, in_grid, panel

Figure = dict[str, Any]
Row = dict[str, Any]

OURS, OURS_SM_90 = "flashcore_drv", "flashcore_drv sm_90"
OWN = {OURS: results.OURS, OURS_SM_90: results.SM_90}
"""Our families as they are called in a figure, and the members of a row."""
GROUPS = {"validation": "part"}
"""Bars that are not of a whole call."""


def digest(figure: Figure) -> str:
    """What identifies a figure's contents."""
    text = json.dumps(figure, sort_keys=True, ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def caption(suites: Sequence[Suite], note: str, with_peers: bool = True) -> list[str]:
    """The lines under a plot: GPU, date and conditions; what the peers' names stand for."""
    conditions = suites[0].conditions
    parts = [str(conditions.get("gpu") or "no GPU")]
    parts += [f"driver {conditions['driver']}"] if "driver" in conditions else []
    files = ", ".join(PurePath(suite.path).name for suite in suites)
    parts += [note, f"commit {conditions['commit']}", conditions["date"], files]
    peers = {name: peer["version"] for suite in suites for name, peer in suite.peers.items()}
    names = [" · ".join(f"{name}: {version}" for name, version in peers.items())] if with_peers and peers else []
    return [" · ".join(parts), *names]


def words(problem: Row) -> str:
    """A problem, for readers who know nothing of the order of its sizes."""
    heads = f"{problem['num_heads']} heads"
    if problem["num_heads_kv"] != problem["num_heads"]:
        heads += f" on {problem['num_heads_kv']}"
    text = f"batch {problem['batch']}, {heads}, seqlen {problem['seqlen_q']}, head_dim {problem['head_dim']}"
    return text + (", causal" if problem["causal"] else "") + ("" if problem["dtype"] == "float16" else ", bf16")


def timed(row: Row, name: str) -> Row | None:
    """The times of an implementation in a row; None where there are none."""
    found = row.get(OWN[name], {}) if name in OWN else row["peers"].get(name, {})
    return found if "us" in found else None


def own(rows: Sequence[Row]) -> list[str]:
    """Our families that were timed in any of the rows."""
    return [OURS, OURS_SM_90] if has_sm_90(rows) else [OURS]


def implementations(suite: Suite) -> list[str]:
    """Our families and the peers."""
    return [*own(suite.rows), *suite.peers]


def rate_ceilings(suite: Suite) -> list[Figure]:
    """The measured limits of operations a second, where they were measured."""
    names = {"mma_sync_tflops": "mma.sync from registers", "gemm_tflops": "cuBLAS GEMM"}
    return [{"name": text, "tflops": suite.ceilings[key]} for key, text in names.items() if key in suite.ceilings]


def forward(suite: Suite) -> Figure | None:
    """TFLOP/s over sequence length: a panel for each head_dim, full and causal."""
    rows = [row for row in suite.rows if in_grid(row)]
    if not rows:
        return None
    panels = []
    for d, causal in sorted({panel(row) for row in rows}, key=lambda place: (place[1], place[0])):
        here = sorted((row for row in rows if panel(row) == (d, causal)), key=lambda row: row["problem"]["seqlen_q"])
        series = []
        for name in implementations(suite):
            points = [(row["problem"]["seqlen_q"], t["tflops"]) for row in here if (t := timed(row, name))]
            if points:
                series.append({"name": name, "x": [x for x, _ in points], "y": [y for _, y in points]})
        panels.append({"title": f"head_dim {d}, {'causal' if causal else 'full'}", "series": series})
    return {
        "kind": "rates",
        "title": f"Attention forward, float16: TFLOP/s over sequence length on {suite.conditions['gpu']}",
        "caption": caption([suite], "16384 tokens, heads · head_dim 2048, causal counts the visible half"),
        "ceilings": rate_ceilings(suite),
        "panels": panels,
    }


def bar(name: str, found: Row | None, group: str = "peer") -> Figure | None:
    """A bar of microseconds, with its spread."""
    if found is None or "us" not in found:
        return None
    return {"name": name, "us": found["us"], "low": found["us_5_95"][0], "high": found["us_5_95"][1], "group": group}


def latency(reference: Suite | None, small: Suite | None) -> Figure | None:
    """µs of GPU time: a panel for each small shape, and for the reference problem where it is not among these."""
    panels = []
    shapes = small.rows if small else []
    parts = {"flash": "fused", "unfused": "unfused"}
    whole = [row for part in parts for row in reference.rows if row["part"] == part] if reference else []
    whole = [row for row in whole if all(row["problem"] != other["problem"] for other in shapes)]
    if reference and whole:
        bars = [bar(f"{OURS}, {parts[row['part']]}", row["ours"], "ours") for row in whole]
        bars += [bar(OURS_SM_90, timed(row, OURS_SM_90), "ours") for row in whole]
        bars += [bar(name, timed(row, name)) for row in whole for name in reference.peers]
        panels.append((words(whole[0]["problem"]), bars))
    for row in shapes:
        names = [*own([row]), *row["peers"]]
        bars = [bar(name, timed(row, name), "ours" if name in OWN else "peer") for name in names]
        panels.append((words(row["problem"]), bars))
    if not panels:
        return None
    suites = [suite for suite in (reference if whole else None, small) if suite]
    return {
        "kind": "bars",
        "title": f"GPU time of one call, µs, on {suites[0].conditions['gpu']} (shorter is better)",
        "caption": caption(suites, "median and 5 to 95 %"),
        "panels": [{"title": title, "bars": [b for b in bars if b]} for title, bars in panels],
    }


def host(suite: Suite) -> Figure | None:
    """µs of host time a call."""
    panels = []
    for row in suite.rows:
        bars = [bar(text.replace("`", ""), row["ours"].get(way), GROUPS.get(way, "ours")) for way, text in WAYS.items()]
        bars += [bar(name, timed(row, name)) for name in suite.peers]
        panels.append({"title": words(row["problem"]), "bars": [b for b in bars if b]})
    return {
        "kind": "bars",
        "title": f"Host time of one call from Python, µs, beside {suite.conditions['gpu']} (shorter is better)",
        "caption": caption([suite], "median and 5 to 95 % over interleaved rounds"),
        "panels": panels,
    }


def fastest(row: Row) -> float:
    """TFLOP/s of the faster of our families."""
    return max(x["tflops"] for name in OWN if (x := timed(row, name)))


def roofline(suites: Sequence[Suite]) -> Figure | None:
    """TFLOP/s over operations a byte of memory traffic, under the limits measured in the same run."""
    suites = [suite for suite in suites if "copy_tb_s" in suite.ceilings]
    if not suites:
        return None
    groups = []
    for suite in suites:
        rows = [row for row in suite.rows if row["flops"] and row["bytes"] and row.get("part", "flash") == "flash"]
        for causal in (False, True):
            for d in sorted({row["problem"]["head_dim"] for row in rows}):
                here = [row for row in rows if panel(row) == (d, causal)]
                points = [[row["flops"] / row["bytes"], fastest(row)] for row in here]
                if points:
                    mask = "causal" if causal else "full"
                    groups.append(
                        {"suite": suite.found["suite"], "head_dim": d, "mask": mask, "points": sorted(points)}
                    )
    return {
        "kind": "roofline",
        "title": f"Roofline of the fused kernel on {suites[0].conditions['gpu']}"
        + (", the faster of our families" if any(has_sm_90(suite.rows) for suite in suites) else ""),
        "caption": caption(suites, "bytes: each input read once, the output written once", with_peers=False),
        "copy_tb_s": suites[0].ceilings["copy_tb_s"],
        "ceilings": rate_ceilings(suites[0]),
        "groups": groups,
    }


def all_figures(suites: dict[str, Suite]) -> dict[str, Figure]:
    """Every figure that the results allow, by file name."""
    found = {
        "forward": forward(suites["forward"]) if "forward" in suites else None,
        "latency": latency(suites.get("reference"), suites.get("small")),
        "host": host(suites["host"]) if "host" in suites else None,
        "roofline": roofline([suites[name] for name in ("forward", "reference", "small") if name in suites]),
    }
    return {name: figure for name, figure in found.items() if figure}
