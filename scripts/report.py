"""The README's tables, those of benchmarks/README.md and the plots, from the newest results of every suite.

    python scripts/report.py            write the blocks between the markers, and docs/plots/
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
from reporting import bars, data, figures, markers, tables

ROOT = Path(__file__).resolve().parent.parent


def expected_blocks(root: Path, suites: dict[str, data.Suite]) -> dict[str, str]:
    """The contents of the README's blocks; none for a suite that was not run, and the prediction for the L4."""
    blocks = {name: tables.block(suites[name]) if name in suites else "" for name in tables.BLOCKS}
    predicted = prediction.lines(root)
    return blocks | {"l4": "\n".join(["", *predicted, "", ""]) if predicted else ""}


def wanted_texts(root: Path, gpu: str, suites: dict[str, data.Suite]) -> dict[Path, str]:
    """Every document with its blocks as the data have them. Raises MarkerError."""
    documents = {
        root / "README.md": expected_blocks(root, suites),
        root / "benchmarks" / "README.md": {"bars": bars.block(suites, data.others(root, gpu))},
    }
    wanted = {}
    for path, blocks in documents.items():
        try:
            markers.read(path.read_text(), list(blocks))
        except markers.MarkerError as error:
            raise markers.MarkerError(f"{path.relative_to(root)}: {error}") from None
        wanted[path] = markers.fill(path.read_text(), blocks)
    return wanted


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


def check(wanted: dict[Path, str], plots: Path, expected: dict[str, figures.Figure]) -> int:
    """Print what differs; how many things do."""
    complaints = []
    for path, text in wanted.items():
        found = path.read_text().splitlines()
        complaints += list(difflib.unified_diff(found, text.splitlines(), path.name, "the data", lineterm=""))
    complaints += stale_plots(plots, expected)
    for line in complaints:
        print(line)
    if complaints:
        print("run: python scripts/report.py", file=sys.stderr)
    return len(complaints)


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
    plots = args.root / "docs" / "plots"
    try:
        suites = data.newest(args.root, args.gpu)
        wanted = wanted_texts(args.root, args.gpu, suites)
    except ValueError as error:
        sys.exit(f"error: {error}")
    expected = figures.all_figures(suites)
    if args.check:
        sys.exit(1 if check(wanted, plots, expected) else 0)
    for path, text in wanted.items():
        path.write_text(text)
    try:
        write_plots(plots, expected)
    except ImportError as error:
        sys.exit(f"error: the tables are written, the plots are not: {error}; pip install -e '.[bench]'")


if __name__ == "__main__":
    main()
