"""Predictions as text, and as the block ``<!-- report:l4 -->`` of the README.

scripts/report.py makes that block of `lines`, as it makes the others of their suites.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def newest(root: Path, gpu: str) -> tuple[str, Found] | None:
    """The newest saved prediction for a GPU, and its path from `root`."""
    paths = sorted((root / "benchmarks" / "predicted").glob(f"????-??-??-{gpu}.json"))
    return (paths[-1].relative_to(root).as_posix(), json.loads(paths[-1].read_text())) if paths else None


def lines(root: Path, gpu: str = "l4") -> list[str]:
    """The README's table for a GPU: empty where nothing is saved."""
    saved = newest(root, gpu)
    if saved is None:
        return []
    path, found = saved
    clocks = found["rates"]["clocks"]
    head = ["problem", "mask", "kernel", "waves", "binds", *(f"µs at {ghz:g} GHz" for ghz in clocks.values())]
    rows = [
        [
            row["problem"],
            "causal" if row["causal"] else "full",
            f"`{row['stem']}`",
            f"{row['waves']:g}",
            row["binds"],
            *(f"{_us(row['us'][name])} ({row['tflops'][name]:.3g} TFLOP/s)" for name in clocks),
        ]
        for row in found["rows"]
    ]
    names = "; ".join(f"{ghz:g} GHz: {name}" for name, ghz in clocks.items())
    prose = (
        f"Predicted for the {found['gpu']}, not measured: no such GPU was at hand. {names}. Problems are batch x heads "
        "x seqlen_q x seqlen_k x head_dim, float16. How it is predicted, and how far off that is on the H200: "
        f"`docs/predict.md` ({found['date']}, `{path}`)."
    )
    return [
        *textwrap.wrap(prose, 120, break_on_hyphens=False),
        "",
        *_markdown(head, rows),
    ]


def _us(x: float) -> str:
    """Microseconds, to a tenth where they are few."""
    return f"{x:.1f}" if x < 100 else f"{x:.0f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    return [
        "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(cells, widths)))
        for cells in (head, *rows)
    ]


def text(found: Found) -> str:
    """For a terminal."""
    rates = found["rates"]
    clocks = ", ".join(f"{ghz:g} GHz ({name})" for name, ghz in rates["clocks"].items())
    out = [f"{found['gpu']}: {rates['multiprocessors']} SMs, {rates['tensor_tflops']:g} TFLOP/s, {clocks}"]
    out.append(f"{found['is']}; rates from {rates['sources']} (scripts/prediction/gpus.py)")
    if kernels := found["kernels"]:
        names = list(kernels[0]["counts"])
        head = ["kernel", "tile", "registers", "shared", "blocks/SM", "by", *names, "all"]
        rows = [
            [
                k["stem"],
                k["tile"],
                str(k["registers"]),
                str(k["shared_bytes"]),
                str(k["blocks_an_sm"]),
                k["bound_by"],
                *(str(x) for x in k["counts"].values()),
                str(k["instructions"]),
            ]
            for k in kernels
        ]
        out += ["", "What a block needs, and what a warp executes for a tile:", *_aligned(head, rows)]
        head = ["kernel", *kernels[0]["pipe_cycles"], "binds", "simulated", "of it"]
        rows = [
            [
                k["stem"],
                *(str(x) for x in k["pipe_cycles"].values()),
                k["binds"],
                str(k["simulated_cycles"]),
                f"{100 * k['pipe_cycles'][k['binds']] / k['simulated_cycles']:.0f} %",
            ]
            for k in kernels
        ]
        out += ["", "Cycles of an SM for a tile of each of its blocks: busy by pipe, simulated:", *_aligned(head, rows)]
    names = list(rates["clocks"])
    at = [f"us at {ghz:g} GHz" for ghz in rates["clocks"].values()]
    head = ["problem", "", "kernel", "blocks", "waves", "binds", "cycles", *at, "TFLOP/s"]
    rows = [
        [
            r["problem"],
            "causal" if r["causal"] else "full",
            r["stem"],
            str(r["blocks"]),
            f"{r['waves']:g}",
            r["binds"],
            str(r["cycles"]),
            *(f"{r['us'][x]:.5g}" for x in names),
            " / ".join(f"{r['tflops'][x]:.4g}" for x in names),
        ]
        for r in found["rows"]
    ]
    out += ["", "Problems:", *_aligned(head, rows)]
    if measured := found.get("measured"):
        out += ["", f"Beside {measured['file']}, at {measured['ghz']:g} GHz ({measured['clock']}):"]
        out += _beside(measured, "id", "us")
    if profiled := found.get("profiled"):
        out += ["", f"Cycles beside {profiled['file']}, which ncu counted at {profiled['commit']}:"]
        out += _beside(profiled, "problem", "cycles")
    return "\n".join(out)


def _beside(found: Found, name: str, unit: str) -> list[str]:
    """Predictions beside measurements."""
    head = ["problem", "kernel", f"predicted {unit}", f"measured {unit}", "error"]
    rows = [
        [
            row[name],
            row["stem"],
            f"{row[f'predicted_{unit}']:.7g}",
            f"{row[f'measured_{unit}']:.7g}",
            f"{100 * row['error']:+.1f} %",
        ]
        for row in found["rows"]
    ]
    return [
        *_aligned(head, rows),
        f"error: median {100 * found['median_absolute_error']:.1f} % "
        f"(signed {100 * found['median_error']:+.1f} %), worst {100 * found['worst_error']:+.1f} %",
    ]
