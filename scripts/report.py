"""The README's tables and the plots, from the newest results of every suite.

    python scripts/report.py            write the blocks between the README's markers, and docs/plots/
    python scripts/report.py --check    write nothing; exit status 1 with what differs from the data

Tables need nothing but Python; drawing needs matplotlib (the extra `bench`). A plot carries a digest of what it shows,
so that --check needs no matplotlib either.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from prediction import table as prediction
from reporting import data, figures, markers, tables

ROOT = Path(__file__).resolve().parent.parent


def expected_blocks(root: Path, suites: dict[str, data.Suite]) -> dict[str, str]:
    """The contents of every block; none for a suite that was not run, and the prediction for the L4."""
    blocks = {name: tables.block(suites[name]) if name in suites else "" for name in tables.BLOCKS}
    predicted = prediction.lines(root)
    return blocks | {"l4": "\n".join(["", *predicted, "", ""]) if predicted else ""}


def stale_plots(folder: Path, expected: dict[str, figures.Figure]) -> list[str]:
    """What is wrong with the plots in a folder."""
    complaints = []
    for name, figure in expected.items():
        path = folder / f"{name}.svg"
        if not path.is_file():
            complaints.append(f"{path.name} is missing")
        elif figures.digest(figure) not in path.read_text():
            complaints.append(f"{path.name} shows other data")
    there = {path.stem for path in folder.glob("*.svg")}
    return complaints + [f"{name}.svg has no data" for name in sorted(there - set(expected))]


def check(readme: Path, wanted: str, plots: Path, expected: dict[str, figures.Figure]) -> int:
    """Print what differs; how many things do."""
    found = readme.read_text()
    difference = list(
        difflib.unified_diff(found.splitlines(), wanted.splitlines(), readme.name, "the data", lineterm="")
    )
    complaints = stale_plots(plots, expected)
    for line in [*difference, *complaints]:
        print(line)
    if difference or complaints:
        print("run: python scripts/report.py", file=sys.stderr)
    return len(difference) + len(complaints)


def write_plots(folder: Path, expected: dict[str, figures.Figure]) -> None:
    """Draw every figure."""
    from reporting import draw

    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.svg"):
        path.unlink()
    for name, figure in expected.items():
        draw.save(figure, folder / f"{name}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of write")
    parser.add_argument("--gpu", default="nvidia-h200", help="folder in benchmarks/ (default: nvidia-h200)")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository (default: this one)")
    args = parser.parse_args()
    readme, plots = args.root / "README.md", args.root / "docs" / "plots"
    try:
        suites = data.newest(args.root, args.gpu)
        blocks = expected_blocks(args.root, suites)
        markers.read(readme.read_text(), list(blocks))
    except ValueError as error:
        sys.exit(f"error: {error}")
    wanted = markers.fill(readme.read_text(), blocks)
    expected = figures.all_figures(suites)
    if args.check:
        sys.exit(1 if check(readme, wanted, plots, expected) else 0)
    readme.write_text(wanted)
    try:
        write_plots(plots, expected)
    except ImportError as error:
        sys.exit(f"error: the tables are written, the plots are not: {error}; pip install -e '.[bench]'")


if __name__ == "__main__":
    main()
