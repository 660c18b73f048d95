"""Bank conflicts of shared-memory loads, from the CSV that ncu writes.

    ncu --csv --metrics "$(python scripts/bank_conflicts.py --metrics)" … > ncu.csv
    python scripts/bank_conflicts.py ncu.csv [--json FILE]

Exit status 1 if in a kernel of the products (qk, pv) more than 2 % of the wavefronts are conflicts.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

WAVEFRONTS = "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum"
CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum"
LIMIT = 0.02


def rows(text: str) -> list[dict[str, str]]:
    """The table in ncu's output, without the lines that ncu and the program print around it."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        sys.exit("error: the file has no table of ncu; did ncu fail to read the counters?")
    return list(csv.DictReader(line for line in lines[start:] if line.startswith('"')))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--metrics", action="store_true", help="print the metrics that ncu must collect")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the numbers")
    args = parser.parse_args()
    if args.metrics:
        print(f"{WAVEFRONTS},{CONFLICTS}")
        return
    if args.file is None:
        parser.error("give the CSV of ncu, or --metrics")
    kernels: dict[str, dict[str, float]] = {}
    for row in rows(args.file.read_text()):
        counts = kernels.setdefault(row["Kernel Name"].split("(")[0], {WAVEFRONTS: 0.0, CONFLICTS: 0.0})
        if row["Metric Name"] in counts:
            counts[row["Metric Name"]] += float(row["Metric Value"].replace(",", ""))
    found = []
    for name, counts in sorted(kernels.items()):
        ratio = counts[CONFLICTS] / counts[WAVEFRONTS] if counts[WAVEFRONTS] else 0.0
        found.append({"kernel": name, "wavefronts": counts[WAVEFRONTS], "conflicts": counts[CONFLICTS], "ratio": ratio})
        print(
            f"{name:28} {counts[WAVEFRONTS]:12.0f} wavefronts {counts[CONFLICTS]:10.0f} conflicts {100 * ratio:6.2f} %"
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any(f["ratio"] > LIMIT for f in found if "wmma" in str(f["kernel"])))


if __name__ == "__main__":
    main()
