"""scripts/sanitize.py: clean kernels are reported clean, planted bugs by kind and source line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mutants.plant import mutated
from mutants.table import MUTANTS

from flashcore_drv.catalog import kernels_of
from flashcore_drv.images import build_folder

ROOT = Path(__file__).resolve().parent.parent


def sanitize(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    if not (build_folder() / "compiler.txt").is_file():
        pytest.skip("no kernels are built: make cubin")
    command = [sys.executable, ROOT / "scripts" / "sanitize.py", *arguments]
    env = os.environ | {"FLASHCORE_DRIVER": "emulator"} | env
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_the_catalog_is_clean() -> None:
    """All that is built: on compute capability 9.0 every kernel for an sm_8x runs, too."""
    arch = 90 if any((build_folder() / "ptx").glob("flash_fwd_tma_*")) else 89
    done = sanitize("--json", "--quick", FLASHCORE_EMULATED_ARCH=f"sm_{arch}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert [k["stem"] for k in found["kernels"]] == [spec.stem for spec in kernels_of(arch)]
    assert all(k["finding"] is None and k["launches"] for k in found["kernels"])
    products = [k["report"]["totals"] for k in found["kernels"] if "wmma" in k["stem"]]
    assert products
    assert all(t["pipes"]["tensor"] and t["global_sectors"] for t in products)


def test_fragment_loads_and_epilogues_meet_no_bank_twice() -> None:
    done = sanitize("1x2x128x128x64", "--json")
    for kernel in json.loads(done.stdout)["kernels"]:
        assert kernel["report"]["totals"]["bank_conflicts"] == 0, kernel["stem"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qk: no barrier after the wait", "race"),
        ("qk: rows past the end are written", "out-of-bounds"),
        ("pv: accumulators are not zeroed", None),
        ("softmax: all warps use one place", "race"),
        ("qk: vectors are stored to unaligned rows", "misaligned"),
    ],
)
def test_a_planted_bug_is_named(tmp_path: Path, name: str, kind: str | None) -> None:
    (mutant,) = (m for m in MUTANTS if m.name == name)
    done = sanitize(mutant.stem, "--json", FLASHCORE_BUILD=str(mutated(mutant, tmp_path)))
    (found,) = json.loads(done.stdout)["kernels"]
    if kind is None:  # a wrong number is no fault: the tests compare results, this script does not
        assert done.returncode == 0
        return
    assert done.returncode == 1
    assert found["finding"]["kind"] == kind
    assert Path(mutant.source).name.split(".")[0] in found["finding"]["message"]


def test_an_unknown_kernel_is_refused() -> None:
    done = sanitize("qk_wmma_f64")
    assert done.returncode == 2
    assert "qk_wmma_f64" in done.stderr
    assert "qk_wmma_f16_d64_sm89" in done.stderr
