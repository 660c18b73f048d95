"""``make wheel``: one wheel for every platform with the kernels of several GPUs, which runs without what built it.

python scripts/wheel.py --archs "80 86 89 90 120"    writes dist/flashcore_drv-VERSION-py3-none-any.whl

The kernels are those of ``build/`` (``make cubin``), without lines of sources and compressed one by one, so that a
process that needs one reads one. The PTX that the emulator runs is among them. The same build gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
sys.path.insert(0, str(ROOT))

from packing.cubin import without_lines  # noqa: E402

from flashcore_drv import abi, catalog  # noqa: E402

EMULATED = 89  # what the emulator stands for unless it is told otherwise
LIMIT = 20_000_000  # bytes of the wheel
STAGED = ("pyproject.toml", "README.md", "LICENSE", "flashcore_drv")
XZ = [{"id": lzma.FILTER_LZMA2, "preset": lzma.PRESET_EXTREME | 6, "dict_size": 1 << 20}]  # of the memory of a reader
LONG_AGO = "315532800"  # 1980, the first year of a zip file


def compress(data: bytes) -> bytes:
    """As xz, with a checksum that the reader checks."""
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC64, filters=XZ)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def pack_cubins(arch: int, folder: Path) -> None:
    """The cubins of an arch and their manifest, whose hashes become those of the packed ones."""
    built = BUILD / "cubin" / f"sm_{arch}"
    manifest = json.loads((built / "manifest.json").read_text())
    if int(manifest["abi_hash"], 16) != abi.ABI_HASH:
        sys.exit(f"error: {built} was built from other structs; build it again: make cubin ARCHS={arch}")
    for kernel in manifest["kernels"]:
        image = without_lines((built / f"{kernel['stem']}.cubin").read_bytes())
        kernel["sha256"] = hashlib.sha256(image).hexdigest()
        write(folder / "cubin" / built.name / f"{kernel['stem']}.cubin.xz", compress(image))
    write(folder / "cubin" / built.name / "manifest.json", json.dumps(manifest, indent=1).encode() + b"\n")


def pack_ptx(folder: Path) -> None:
    """The PTX of the emulator, its sources named from the repository's root."""
    for spec in catalog.CATALOG:
        if spec.arch == catalog.ptx_arch(EMULATED):
            ptx = (BUILD / "ptx" / f"{spec.stem}.ptx").read_text().replace(f'"{ROOT}/', '"')
            write(folder / "ptx" / f"{spec.stem}.ptx.xz", compress(ptx.encode()))


def stage(archs: list[int], folder: Path) -> None:
    """Everything that the wheel is built from."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in STAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    for arch in archs:
        pack_cubins(arch, folder / "flashcore_drv" / "kernels")
    pack_ptx(folder / "flashcore_drv" / "kernels")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # whatever the umask of who builds


def build_wheel(source: Path, target: Path) -> Path:
    """The wheel of a source folder, by the backend that its pyproject.toml names."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": LONG_AGO}
    target.mkdir(exist_ok=True)
    for old in target.glob("flashcore_drv-*.whl"):
        old.unlink()
    subprocess.run([*command, "--wheel-dir", target, source], check=True, env=environment)
    (wheel,) = target.glob("flashcore_drv-*-py3-none-any.whl")
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", required=True, help='compute capabilities that are built, for example "80 89 90"')
    args = parser.parse_args()
    archs = [int(word.removeprefix("sm_")) for word in re.split(r"[\s,]+", args.archs.strip())]
    if missing := [a for a in archs if not (BUILD / "cubin" / f"sm_{a}" / "manifest.json").is_file()]:
        sys.exit(f'error: not built for {", ".join(map(str, missing))}: make cubin ARCHS="{args.archs}"')
    stage(archs, BUILD / "wheel")
    wheel = build_wheel(BUILD / "wheel", ROOT / "dist")
    size = wheel.stat().st_size
    print(f"{wheel.relative_to(ROOT)}: {size / 1e6:.1f} MB, kernels for {', '.join(f'sm_{a}' for a in archs)}")
    if size > LIMIT:
        sys.exit(f"error: above {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
