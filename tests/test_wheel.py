"""The wheel: the same bytes every time, cubins that lose nothing but lines, and kernels that are found in it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from support import ROOT

import flashcore_drv as fc
from flashcore_drv import images
from flashcore_drv.catalog import CATALOG
from flashcore_drv.runtime import is_emulated

sys.path.insert(0, str(ROOT / "scripts"))
import wheel
from packing import cubin

BUILT = images.build_folder()
FEW = ("flash_fwd_f16_d64_sm89", "flash_fwd_small_f16_d64_sm89")
CUBINS = [p for f in sorted(BUILT.glob("cubin/sm_*")) for p in sorted(f.glob("flash_fwd_f16_d64_*.cubin"))]
needs_build = pytest.mark.skipif(not CUBINS, reason=f"nothing is built in {BUILT}: make cubin")


@pytest.fixture
def few(monkeypatch, tmp_path):
    """The script on a build of a few kernels, in folders of this test."""
    if not (BUILT / "cubin" / "sm_89" / "manifest.json").is_file():
        pytest.skip(f"nothing is built in {BUILT}: make cubin")
    for stem in FEW:
        for name in (f"cubin/sm_89/{stem}.cubin", f"ptx/{stem}.ptx"):
            (tmp_path / "build" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(BUILT / name, tmp_path / "build" / name)
    manifest = json.loads((BUILT / "cubin" / "sm_89" / "manifest.json").read_text())
    manifest["kernels"] = [k for k in manifest["kernels"] if k["stem"] in FEW]
    (tmp_path / "build" / "cubin" / "sm_89" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(wheel, "BUILD", tmp_path / "build")
    monkeypatch.setattr(wheel.catalog, "CATALOG", [s for s in CATALOG if s.stem in FEW])
    return tmp_path


# ---- cubins


@needs_build
@pytest.mark.parametrize("path", CUBINS, ids=lambda p: p.parent.name)
def test_a_cubin_loses_its_lines_alone(path) -> None:
    before = path.read_bytes()
    after = cubin.without_lines(before)
    assert len(after) == len(before)
    emptied, kept = [], 0
    for at, name in cubin.sections(before):
        old, new = (cubin.SECTION.unpack_from(x, at) for x in (before, after))
        if "line" in name or "debug_str" in name or "ptx_txt" in name:
            assert new == (*old[:5], 0, *old[6:]), name
            assert not any(after[old[4] : old[4] + old[5]])
            emptied.append(name)
        else:
            assert new == old, name
            if old[1] != 8:  # NOBITS has none
                assert after[old[4] : old[4] + old[5]] == before[old[4] : old[4] + old[5]], name
            kept += 1
    assert {".debug_line", ".nv_debug_ptx_txt"} <= set(emptied)
    assert any("debug_line" in name and ".rel" in name for name in emptied)
    assert kept >= 10
    assert str(BUILT.parent).encode() not in after
    assert len(wheel.compress(after)) < len(wheel.compress(before)) / 2


def test_what_is_no_cubin() -> None:
    with pytest.raises(ValueError, match="no 64-bit ELF"):
        cubin.without_lines(b"\x7fELF\x01 of 32 bits")


# ---- what is in a wheel


def test_two_wheels_are_the_same_and_one_runs(few) -> None:
    made = []
    for name in ("one", "two"):
        wheel.stage([89], few / name / "staged")
        made.append(wheel.build_wheel(few / name / "staged", few / name))
    assert made[0].read_bytes() == made[1].read_bytes()
    assert made[0].name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(made[0]) as archive:
        archive.extractall(few / "site")
    kernels = few / "site" / "flashcore_drv" / "kernels"
    assert {p.name.split(".")[0] for p in kernels.rglob("*.xz")} == set(FEW)
    for kernel in json.loads((kernels / "cubin" / "sm_89" / "manifest.json").read_text())["kernels"]:
        image = images.read_image(kernels / "cubin" / "sm_89" / f"{kernel['stem']}.cubin.xz")
        assert hashlib.sha256(image).hexdigest() == kernel["sha256"]
    code = (
        "import numpy as np, flashcore_drv as fc; from flashcore_drv import images;"
        "x = np.ones((1, 16, 1, 64), np.float16); print(images.build_folder(), fc.attention(x, x, x).max())"
    )
    env = {k: v for k, v in os.environ.items() if k != "FLASHCORE_BUILD"}
    env |= {"PYTHONPATH": str(few / "site"), "FLASHCORE_DRIVER": "emulator"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=few / "site", env=env)
    assert (ran.stdout, ran.returncode) == (f"{kernels} 1.0\n", 0), ran.stderr


def test_no_path_of_the_builder(few) -> None:
    wheel.stage([89], few / "staged")
    for path in (few / "staged").rglob("*.xz"):
        assert str(ROOT).encode() not in images.read_image(path), path


def test_a_stale_build_is_refused(few) -> None:
    path = few / "build" / "cubin" / "sm_89" / "manifest.json"
    path.write_text(path.read_text().replace(hex(wheel.abi.ABI_HASH)[2:], "0" * 16))
    with pytest.raises(SystemExit, match="other structs; build it again: make cubin ARCHS=89"):
        wheel.stage([89], few / "staged")


def test_an_arch_that_is_not_built(few, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["wheel.py", "--archs", "89 75"])
    with pytest.raises(SystemExit, match='not built for 75: make cubin ARCHS="89 75"'):
        wheel.main()


# ---- how kernels are found


SPEC = next(s for s in CATALOG if s.stem == FEW[0])


def test_where_kernels_are(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FLASHCORE_BUILD", str(tmp_path / "chosen"))
    monkeypatch.setattr(images, "INSTALLED", tmp_path / "home" / "flashcore_drv" / "kernels")
    assert images.build_folder() == tmp_path / "chosen"
    monkeypatch.delenv("FLASHCORE_BUILD")
    assert images.build_folder() == tmp_path / "home" / "build"
    images.INSTALLED.mkdir(parents=True)
    assert images.build_folder() == images.INSTALLED


@pytest.fixture
def packed(device, monkeypatch, tmp_path):
    """Where the compressed file of a kernel is that attention loads."""
    if not is_emulated():
        pytest.skip("packs PTX")
    source = BUILT / "ptx" / f"{SPEC.stem}.ptx"
    if not source.is_file():
        pytest.skip(f"nothing is built in {BUILT}: make cubin")
    path = tmp_path / "ptx" / f"{SPEC.stem}.ptx.xz"
    wheel.write(path, wheel.compress(source.read_bytes()))
    monkeypatch.setenv("FLASHCORE_BUILD", str(tmp_path))
    images._load.cache_clear()
    yield path
    images._load.cache_clear()


def test_a_compressed_kernel_is_loaded(device, packed) -> None:
    assert images.image_path(SPEC, 89, emulated=True) == packed
    assert images.load(SPEC, device).spec is SPEC


def test_the_nearest_compressed_cubin(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FLASHCORE_BUILD", str(tmp_path))
    wheel.write(tmp_path / "cubin" / "sm_80" / f"{SPEC.stem}.cubin.xz", b"")
    assert images.image_path(SPEC, 86, emulated=False).name == f"{SPEC.stem}.cubin.xz"
    with pytest.raises(fc.KernelImageError, match="built for: sm_80"):
        images.image_path(SPEC, 90, emulated=False)


@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: b"no" + x, lambda x: x[:200] + b"\0" + x[201:]])
def test_a_damaged_compressed_kernel(device, packed, damage) -> None:
    packed.write_bytes(damage(packed.read_bytes()))
    with pytest.raises(fc.KernelImageError, match=r"is damaged \(.+\); install flashcore_drv again"):
        images.load(SPEC, device)
    packed.write_bytes(b"")
    with pytest.raises(fc.KernelImageError, match="is damaged"):
        images.load(SPEC, device)


def test_a_wheel_without_the_kernel_says_how_to_get_it(monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("FLASHCORE_BUILD", raising=False)
    monkeypatch.setattr(images, "INSTALLED", tmp_path)
    with pytest.raises(fc.KernelImageError, match="in the repository of flashcore_drv: make cubin ARCHS=100"):
        images.image_path(SPEC, 100, emulated=False)


def test_reading_is_lazy() -> None:
    """A process that loads no compressed kernel does not pay for the decompressor."""
    code = "import flashcore_drv, sys; print('lzma' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "False\n"
