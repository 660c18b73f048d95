"""What the README says to type works."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

# Commands that this very CI runs (.ci/run), or that tests/test_build.py does.
ELSEWHERE = {"make run", "make test", "make cubin", 'make cubin ARCHS="80 86 89 90"', "pip install -e ."}
SCRIPTS = sorted(set(re.findall(r"`(python scripts/[^`]+)`", README)))


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 128, 8, 64) (1, 8, 128)\n"


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_command_runs(command: str) -> None:
    arguments = [sys.executable, *command.split()[1:]]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_no_other_command_is_named() -> None:
    assert SCRIPTS
    prose = re.sub(r"```.*?```", "", README, flags=re.S)
    typed = set(re.findall(r"`((?:make|pip|python)\b[^`]*)`", prose)) - {"make"}
    block = re.findall(r"```sh\n(.*?)```", README, re.S)
    typed |= {line.split("#")[0].strip() for text in block for line in text.splitlines() if line.strip()}
    assert typed - set(SCRIPTS) <= ELSEWHERE


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:docs|scripts|tests|cuda|benchmarks|flashcore_drv)/[^` ]*)`", README)))
)
def test_a_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


def measured(suite: str) -> dict[str, Any]:
    (path,) = set(re.findall(rf"`(benchmarks/[^`]*{suite}[^`]*\.json)`", README))
    return json.loads((ROOT / path).read_text())


def test_the_grid_is_the_data() -> None:
    found = measured("forward")
    assert f"geometric mean {found['geometric_mean_ratio_to_fa2']:.2f}." in README
    for head_dim, causal in {(row["head_dim"], row["causal"]) for row in found["rows"]}:
        rows = [r for r in found["rows"] if (r["head_dim"], r["causal"]) == (head_dim, causal)]
        cells = [
            f"{r['tflops']['ours']:.0f} ({r['ratio_to_fa2']:.2f})" for r in sorted(rows, key=lambda r: r["seqlen"])
        ]
        assert f"| {head_dim} {'causal' if causal else 'full'} | {' | '.join(cells)} |" in README
    ratios = [r["us"]["ours"] / r["us"]["cuDNN"] for r in found["rows"]]
    assert f"({min(ratios):.1f} to {max(ratios):.1f} times ours)" in README


def test_the_measured_table_is_the_data() -> None:
    for row in measured("gpu-check")["reference"]["rows"]:
        predecessor = row["predecessor_l4_us"] or "-"
        cells = (row["stage"], f"{row['max_error']:.1e}", f"{row['ours_us']:.1f}", f"{row['peer_us']:.1f}", predecessor)
        assert f"| {' | '.join(map(str, cells))} |" in README
