"""``python -m flashcore_drv info``: what it says, against what is so."""

import json
import os
import subprocess
import sys

import pytest
from support import ROOT

import flashcore_drv as fc
from flashcore_drv import abi, dispatch, images, info
from flashcore_drv.__main__ import main
from flashcore_drv.dtypes import BF16, F16
from flashcore_drv.runtime import is_emulated


def said(capsys, *arguments):
    """Exit status, and what is printed."""
    status = main(["info", *arguments])
    return status, capsys.readouterr()


def run_info(*arguments, **env):
    command = [sys.executable, "-m", "flashcore_drv", "info", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env})


# ---- versions, driver, devices


def test_the_devices(device, capsys) -> None:
    status, out = said(capsys, "--json")
    found = json.loads(out.out)
    assert status == 0
    assert found["driver"]["kind"] == ("emulator" if is_emulated() else "cuda")
    assert int(found["driver"]["cuda"].split(".")[0]) >= 12
    assert len(found["devices"]) == fc.Device.count()
    shown = found["devices"][device.ordinal]
    assert (shown["name"], shown["arch"]) == (device.name, f"sm_{device.arch}")
    assert shown["multiprocessors"] == device.multiprocessors
    assert shown["memory_bytes"] > 1 << 30
    assert "selected" not in found


def test_the_versions() -> None:
    found = info.versions()
    assert found["flashcore_drv"] == fc.__version__
    assert int(found["abi"], 16) == abi.ABI_HASH
    assert found["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    assert found["cuda-bindings"].startswith("13.")


def test_another_emulated_device() -> None:
    done = run_info("--problem", "1,8,512,64", FLASHCORE_DRIVER="emulator", FLASHCORE_EMULATED_ARCH="sm_80")
    assert "no GPU: the emulator serves" in done.stdout
    assert ", sm_80, 108 SMs, 40 GiB" in done.stdout
    assert done.returncode == 0


def test_no_driver() -> None:
    """Without any GPU to be seen it still tells everything else."""
    done = run_info("--json", "--problem", "1,8,512,64", FLASHCORE_DRIVER="cuda", CUDA_VISIBLE_DEVICES="")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert "nvidia-smi" in found["driver"]["error"]
    assert found["devices"] == []
    assert found["versions"]["flashcore_drv"] == fc.__version__


# ---- kernels


def test_the_kernels(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLASHCORE_BUILD", str(tmp_path))
    for arch, names, abi_hash in (
        ("sm_120", ["a.cubin"], abi.ABI_HASH),
        ("sm_90", ["a.cubin", "a.cubin.log", "b.cubin.xz"], abi.ABI_HASH ^ 1),
    ):
        (tmp_path / "cubin" / arch).mkdir(parents=True)
        for name in names:
            (tmp_path / "cubin" / arch / name).touch()
        manifest = {"nvcc": "V13.0.88", "abi_hash": hex(abi_hash)}
        (tmp_path / "cubin" / arch / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "cubin" / "sm_80").mkdir()
    found = info.kernels()
    assert (found["from"], found["folder"], found["ptx"]) == ("FLASHCORE_BUILD", str(tmp_path), 0)
    assert list(found["archs"].items()) == [
        ("sm_80", {"kernels": 0}),
        ("sm_90", {"kernels": 2, "nvcc": "V13.0.88", "stale": True}),
        ("sm_120", {"kernels": 1, "nvcc": "V13.0.88", "stale": False}),
    ]
    printed = info.lines({**info.collect(), "kernels": found})
    assert "  sm_90: 2, nvcc V13.0.88, stale: build again" in printed
    assert "  sm_80: 0" in printed


def test_from_a_wheel(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("FLASHCORE_BUILD", raising=False)
    monkeypatch.setattr(images, "INSTALLED", tmp_path)
    assert info.kernels() == {"from": "wheel", "folder": str(tmp_path), "archs": {}, "ptx": 0}


# ---- a problem


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("1,8,512,64", [(1, 8, 512, 64)] * 3),
        ("2,32/8,5/700,128/64", [(2, 32, 5, 128), (2, 8, 700, 128), (2, 8, 700, 64)]),
    ],
)
@pytest.mark.parametrize(("dtype", "expected"), [("float16", F16), ("bfloat16", BF16)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_problem(text, shapes, dtype, expected, causal) -> None:
    problem = info.problem_of(text, dtype, causal)
    assert [problem.q.shape, problem.k.shape, problem.v.shape] == shapes
    assert (problem.dtype, problem.causal) == (expected, causal)


@pytest.mark.parametrize(
    "text", ["", "1,8,512", "1,8,512,64,1", "1/1,8,512,64", "1,8/4/2,512,64", "1,8,-5,64", "a,8,5,8"]
)
def test_what_is_no_problem(text, capsys) -> None:
    with pytest.raises(fc.InvalidArgument, match="allowed: B,H,S,D"):
        info.problem_of(text)
    if text:
        status, out = said(capsys, f"--problem={text}")
        assert (status, out.out) == (2, "")
        assert out.err.startswith(f"error: problem '{text}'; allowed")


@pytest.mark.parametrize(
    ("text", "why"), [("1,3/2,5,64", "multiple"), ("1,8,5,7", "multiples of 8"), ("0,8,5,8", "shape")]
)
def test_a_problem_that_attention_refuses(text, why, capsys) -> None:
    status, out = said(capsys, "--problem", text)
    assert (status, out.out) == (2, "")
    assert why in out.err


def test_what_is_selected(device, capsys) -> None:
    problem = info.problem_of("1,32/8,1/700,128", "bfloat16")
    stems = [spec.stem for spec in dispatch.select(problem, device.arch, gpu=device)]
    status, out = said(capsys, "--problem", "1,32/8,1/700,128", "--dtype", "bfloat16")
    assert status == 0
    line = next(x for x in out.out.splitlines() if x.startswith("selected on device 0: "))
    assert all(stem in line for stem in stems)
    status, out = said(capsys, "--problem", "1,32/8,1/700,128", "--dtype", "bfloat16", "--json")
    (selected, *_) = json.loads(out.out)["selected"]
    assert selected["kernels"] == stems
    if "error" not in selected:  # built
        assert [os.path.basename(p).split(".")[0] for p in selected["files"]] == stems


def test_a_kernel_that_is_not_there(device, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FLASHCORE_BUILD", str(tmp_path))
    status, out = said(capsys, "--problem", "1,8,512,64")
    assert status == 0
    assert f"selected on device 0: {tmp_path}" in out.out
    assert "is missing (built for: nothing); build it: make cubin" in out.out
