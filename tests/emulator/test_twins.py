"""The same launches on the emulator and on the H200 (tests/golden/twins.*, recorded by scripts/twins.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashcore_drv.images import build_folder

ROOT = Path(__file__).resolve().parent.parent.parent


def compare(folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "twins.py", "compare", *(["--folder", folder] if folder else [])]
    env = os.environ | {"FLASHCORE_DRIVER": "emulator", "FLASHCORE_EMULATED_ARCH": "sm_89"}
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_results_and_counts_agree_with_the_gpu() -> None:
    if not (build_folder() / "ptx").is_dir():
        pytest.skip("no kernels are built: make cubin")
    done = compare()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("as it must be\n")


def test_a_wrong_count_is_seen(tmp_path: Path) -> None:
    if not (build_folder() / "ptx").is_dir():
        pytest.skip("no kernels are built: make cubin")
    golden = ROOT / "tests" / "golden"
    counts = json.loads((golden / "twins.json").read_text())
    counts["qk f16 2/1 70x136 d64"]["smsp__inst_executed_op_ldsm.sum"] += 1
    (tmp_path / "twins.json").write_text(json.dumps(counts))
    (tmp_path / "twins.npz").write_bytes((golden / "twins.npz").read_bytes())
    done = compare(tmp_path)
    assert done.returncode == 1
    assert "MUST BE EQUAL" in done.stdout
