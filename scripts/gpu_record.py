"""What scripts/gpu_check.sh found, as one record for benchmarks/.

python scripts/gpu_record.py FOLDER --json benchmarks/nvidia-h200/2026-11-23-gpu-check.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


def last_match(path: Path, pattern: str) -> str:
    """The last match in a log; a log without one is an error."""
    found = re.findall(pattern, path.read_text())
    if not found:
        sys.exit(f"error: {path} has no {pattern!r}: did its step fail?")
    return str(found[-1])


def record(folder: Path) -> dict[str, Any]:
    """The record: conditions, tests, sanitizers, bank conflicts, twins, resources."""
    reference = json.loads((folder / "reference.json").read_text())
    manifest = json.loads((folder / "manifest.json").read_text())
    return {
        "suite": "gpu-check",
        "conditions": reference["conditions"],
        "tests": {
            "hypothesis_examples_a_property": int(last_match(folder / "tests.log", r"FUZZ_EXAMPLES=(\d+)")),
            "pytest": last_match(folder / "tests.log", r"(?:\d+ failed, )?\d+ passed.*"),
            "features": last_match(folder / "features.log", r"FEATURE_EXAMPLES=.*"),
        },
        "compute_sanitizer": {tool: last_match(folder / f"{tool}.log", r"SUMMARY: (.*)") for tool in TOOLS},
        "shared_load_bank_conflicts": json.loads((folder / "counters.json").read_text()),
        "twins": last_match(folder / "twins.log", r"(?:NOT )?as it must be.*"),
        "resources": manifest["kernels"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    args.json.write_text(json.dumps(record(args.folder), indent=1) + "\n")
    print(args.json)


if __name__ == "__main__":
    main()
