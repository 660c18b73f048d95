"""scripts/profile.py on what ncu printed on an H200 (flash_fwd_f16_d64, excerpts), and where there is no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from profiling import ncu  # noqa: E402
from profiling.launch import work_of  # noqa: E402
from profiling.verdict import Verdict  # noqa: E402

from flashcore_drv.errors import InvalidArgument  # noqa: E402
from flashcore_drv.tuned import GpuModel  # noqa: E402

SAMPLE = ROOT / "tests" / "golden" / "profile"
H200 = GpuModel("NVIDIA H200", 132)


def profile(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "profile.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env)


def verdict(stalls: dict[str, float] | None = None, **metrics: float) -> Verdict:
    return Verdict("kernel", "1x1x64x64x64 full", "a GPU", metrics, stalls or {"selected": 1.0, "wait": 2.0}, [])


def test_counters_are_read_with_their_units_in_base() -> None:
    launch, numbers = ncu.read_raw((SAMPLE / "raw.csv").read_text())
    assert launch["Kernel Name"] == "flash_fwd_f16_d64_sm89"
    found = ncu.metrics(numbers)
    assert found.keys() == ncu.METRICS.keys()
    assert found["ns"] == 1481824
    assert found["tensor"] == 59.2
    assert found["hmma"] == 4 * 32 * 4096 * 4096 * 64 * 4 // 4096  # an HMMA is 4096 FLOP
    assert found["ldsm"] == 4096 * 4 * (64 * 32 + 8)  # of every warp: 32 a tile of 64, and Q


def test_warnings_around_the_table_are_no_part_of_it() -> None:
    text = (SAMPLE / "raw.csv").read_text()
    assert ncu.read_raw(f"==WARNING== Note: clocks\n\n{text}==PROF== done\n") == ncu.read_raw(text)


def test_a_counter_without_a_number_is_left_out() -> None:
    text = '"ID","Kernel Name","gpu__time_duration.sum","dram__bytes.sum"\n"","","ns","byte"\n"0","k","1,234","n/a"\n'
    assert ncu.metrics(ncu.read_raw(text)[1]) == {"ns": 1234}


def test_output_without_a_launch_is_refused() -> None:
    with pytest.raises(ncu.NcuError, match="no launch"):
        ncu.read_raw("==WARNING== No kernels were profiled.\n")


def test_stalls_come_by_size() -> None:
    found = ncu.stalls(ncu.read_raw((SAMPLE / "raw.csv").read_text())[1])
    assert list(found)[:3] == ["wait", "selected", "math_pipe_throttle"]
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_source_lines_are_those_of_the_repository() -> None:
    first, second, *_ = ncu.read_source((SAMPLE / "source.csv").read_text())
    assert (first.file, first.number, first.samples) == ("cuda/ptx/mma.cuh", 21, 62293)  # its text has quotes
    assert first.stalls["wait"] == 32434
    assert sum(first.stalls.values()) == first.samples
    assert (second.file, second.number) == ("cuda/attention/softmax.cuh", 64)
    assert (ROOT / first.file).is_file()


def test_the_sample_is_judged_without_a_gpu() -> None:
    done = profile("--read", SAMPLE)
    assert done.returncode == 0, done.stderr
    assert "tensor pipe           59.2 %" in done.stdout
    assert "cuda/ptx/mma.cuh:21" in done.stdout
    assert len(done.stdout.splitlines()) <= 40
    (row,) = json.loads(profile("--read", SAMPLE, "--json").stdout)["rows"]
    assert row["binds"] == "tensor"
    assert row["limits_percent"]["shared_memory"] == 50.1  # 40.4, and 9.7 for the copies
    assert row["blocks_bound_by"] == "registers and shared memory"


@pytest.mark.parametrize(
    ("metrics", "binds", "says"),
    [
        ({"tensor": 93.0, "mufu": 40.0}, "tensor", "tensor pipe binds: 93 %"),
        ({"tensor": 50.0, "mufu": 62.0}, "mufu", "MUFU (exponentials) is busiest, 62 %"),
        ({"tensor": 30.0, "dram": 20.0}, "latency", "nothing is near its limit (tensor pipe 30 %)"),
        # 10 of 100 cycles of two SMs write copies: with the 80 that the counter has, shared memory binds
        (
            {"tensor": 85.0, "shared_memory": 80.0, "copy_wavefronts": 20, "cycles": 100, "sms": 2},
            "shared_memory",
            "shared memory binds: 90 %",
        ),
    ],
)
def test_what_binds(metrics: dict[str, float], binds: str, says: str) -> None:
    found = verdict(**metrics)
    assert found.binds() == binds
    assert found.says()[0].startswith(says)


def test_the_longest_waits_are_explained() -> None:
    found = verdict({"wait": 2.0, "selected": 1.0, "imc_miss": 0.6, "barrier": 0.4}, tensor=20.0)
    assert [text[:4] for text in found.says()[1:]] == ["50 %", "15 %", "10 %"]
    assert "parameters and constants" in found.says()[2]


def test_bank_conflicts_are_a_share_of_wavefronts() -> None:
    found = verdict(load_wavefronts=90, store_wavefronts=10, load_conflicts=4, store_conflicts=1)
    assert found.conflicts == 5.0


def test_a_problem_gets_the_kernel_of_dispatch_and_a_stem_its_own() -> None:
    small = work_of("1x1x512x512x64", False, "f16", 89, GpuModel("NVIDIA L4", 58))
    assert small.spec.stem == "flash_fwd_small_f16_d64_sm89"
    grouped = work_of("2x32/8x4096x4096x128", True, "f16", 90, H200)
    assert (grouped.spec.stem, grouped.shape.heads_kv) == ("flash_fwd_tma_causal_f16_d128_sm90a", 8)
    own = work_of("flash_fwd_tma_causal_f16_d64_sm90a", False, "f16", 90, H200)
    assert (str(own.shape), own.causal) == ("4x32x4096x4096x64", True)
    stem = work_of("flash_fwd_causal_f16_d256_sm89", False, "f16", 90, H200)
    assert (str(stem.shape), stem.causal) == ("4x8x4096x4096x256", True)
    with pytest.raises(InvalidArgument, match="neither a problem"):
        work_of("flash_fwd_f16_d65", False, "f16", 90, H200)


def test_without_a_gpu_it_says_so() -> None:
    done = profile("1x8x512x512x64", FLASHCORE_DRIVER="emulator")
    assert done.returncode == 2
    assert done.stderr == "error: there is no GPU here, only the emulator; scripts/sanitize.py counts on it\n"


def test_without_ncu_or_leave_to_count_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ncu"
    program.write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM - no permission'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ncu.NcuError, match="no leave to read performance counters"):
        ncu.collect("kernel", 2, ["true"], tmp_path / "report")
    program.write_text("#!/bin/sh\necho 'something else'\nexit 3\n")
    with pytest.raises(ncu.NcuError, match=r"ncu failed \(3\):\nsomething else"):
        ncu.collect("kernel", 2, ["true"], tmp_path / "report")
    monkeypatch.setattr(ncu.shutil, "which", lambda name: None)
    monkeypatch.setattr(ncu.Path, "is_file", lambda self: False)
    with pytest.raises(ncu.NcuError, match="ncu is not on PATH"):
        ncu.find_ncu()


def test_the_launches_run(tmp_path: Path) -> None:
    done = profile("1x1x64x64x64", "--launch", FLASHCORE_DRIVER="emulator")
    assert done.returncode == 0, done.stderr


def test_its_name_does_not_hide_the_standard_librarys_profile() -> None:
    code = "import cProfile, profile; cProfile.Profile().runcall(sum, [1]); print(profile.__file__)"
    env = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.startswith(str(ROOT))
