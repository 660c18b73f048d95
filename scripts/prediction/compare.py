"""Predictions beside the newest measurements of the same GPU."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reporting.data import newest
from shapes import Shape

from .gpus import Gpu

FOLDERS = {"h200": "nvidia-h200"}


def measured(root: Path, gpu: str) -> list[dict[str, Any]]:
    """The rows of the newest suite `forward` in float16 with as many KV heads as heads, and the file they are from."""
    suite = newest(root, FOLDERS[gpu]).get("forward") if gpu in FOLDERS else None
    if suite is None:
        return []
    plain = [
        row
        for row in suite.rows
        if row["problem"]["varlen"] is None
        and row["problem"]["dtype"] == "float16"
        and row["problem"]["num_heads"] == row["problem"]["num_heads_kv"]
    ]
    return [{**row, "file": suite.path} for row in plain]


def profiled(root: Path, gpu: str) -> dict[str, Any] | None:
    """The newest results of scripts/profile.py, and the file that they are from."""
    paths = sorted((root / "benchmarks" / FOLDERS[gpu]).glob("*-profile.json")) if gpu in FOLDERS else []
    return json.loads(paths[-1].read_text()) | {"file": paths[-1].relative_to(root).as_posix()} if paths else None


def errors_of(errors: list[float]) -> dict[str, float]:
    """What is said of predictions' errors."""
    return {
        "median_absolute_error": round(statistics.median(map(abs, errors)), 4),
        "median_error": round(statistics.median(errors), 4),
        "worst_error": max(errors, key=abs),
    }


def beside_cycles(found: dict[str, Any], predict: Callable[[str, Shape, bool], dict[str, Any]]) -> dict[str, Any]:
    """Predicted cycles and those that ncu counted, of every launch that was profiled: a comparison without clocks."""
    rows = []
    for row in found["rows"]:
        shape, mask = row["problem"].split()
        sizes = Shape.parse(shape)
        if sizes is None:
            continue
        cycles, real = predict(row["kernel"], sizes, mask == "causal")["cycles"], row["metrics"]["cycles"]
        rows.append(
            {
                "problem": row["problem"],
                "stem": row["kernel"],
                "predicted_cycles": cycles,
                "measured_cycles": real,
                "error": round(cycles / real - 1, 4),
            }
        )
    of = found["conditions"]["commit"]
    return {"file": found["file"], "commit": of, **errors_of([row["error"] for row in rows]), "rows": rows}


def beside(rows: list[dict[str, Any]], predict: Callable[[Shape, bool], dict[str, Any]], gpu: Gpu) -> dict[str, Any]:
    """Predicted and measured microseconds of every row at the GPU's clock under load, and how far they differ."""
    clock = list(gpu.clocks)[-1]
    found = []
    for row in rows:
        p = row["problem"]
        sizes = (p[name] for name in ("batch", "num_heads", "num_heads_kv", "seqlen_q", "seqlen_k", "head_dim"))
        predicted = predict(Shape(*sizes), p["causal"])
        us, real = predicted["us"][clock], row["ours"]["us"]
        found.append(
            {
                "id": row["id"],
                "stem": predicted["stem"],
                "predicted_us": us,
                "measured_us": round(real, 2),
                "error": round(us / real - 1, 4),
            }
        )
    return {
        "file": rows[0]["file"],
        "clock": clock,
        "ghz": gpu.clocks[clock],
        **errors_of([row["error"] for row in found]),
        "rows": found,
    }
