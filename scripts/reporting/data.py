"""The newest results of every suite."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import results

_FILE = re.compile(r"(\d{4}-\d\d-\d\d)-(.+)\.json")


@dataclass(frozen=True)
class Suite:
    """The results of one suite.

    Attributes
    ----------
    path : str
        The file, from the root of the repository.
    found : dict
        Its contents (``benchmark/results.py`` has the schema).
    """

    path: str
    found: dict[str, Any]

    @property
    def conditions(self) -> dict[str, Any]:
        """What was measured where."""
        conditions: dict[str, Any] = self.found["conditions"]
        return conditions

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows whose result was right."""
        return [row for row in self.found["rows"] if "wrong" not in row["ours"]]

    @property
    def peers(self) -> dict[str, dict[str, Any]]:
        """The peers that took part, in the order of the file."""
        return {name: peer for name, peer in self.found.get("peers", {}).items() if "absent" not in peer}

    @property
    def ceilings(self) -> dict[str, float]:
        """What was reached without attention in the same run: ``gemm_tflops``, ``mma_sync_tflops``, ``copy_tb_s``."""
        return {name: x for name, x in self.found.get("ceilings", {}).items() if not isinstance(x, dict)}


def newest(root: Path, gpu: str) -> dict[str, Suite]:
    """The newest file of every suite in ``benchmarks/<gpu>`` under `root`, by suite; files of other tools are left out.

    Raises
    ------
    ValueError
        If a file is not valid.
    """
    files: dict[str, Path] = {}
    for path in sorted((root / "benchmarks" / gpu).glob("*.json")):
        if match := _FILE.fullmatch(path.name):
            files[match[2]] = path  # sorted by date: the last one stays
    suites = {}
    for path in files.values():
        found = json.loads(path.read_text())
        name = path.relative_to(root).as_posix()
        if found.get("suite") in results.ROW_CHECKS and "schema" in found:
            results.load(path)
            suites[found["suite"]] = Suite(name, found)
    return suites


def others(root: Path, gpu: str) -> dict[str, Any]:
    """The newest data of other tools on a GPU: ``gpu_check``, ``predicted``, and ``tuned``, the table of dispatch."""
    found = {
        "gpu_check": sorted((root / "benchmarks" / gpu).glob("*-gpu-check.json")),
        "predicted": sorted((root / "benchmarks" / "predicted").glob(f"????-??-??-{gpu.removeprefix('nvidia-')}.json")),
        "tuned": [path] if (path := root / "flashcore_drv" / "tuned" / f"{gpu}.json").is_file() else [],
    }
    return {name: json.loads(paths[-1].read_text()) for name, paths in found.items() if paths}
