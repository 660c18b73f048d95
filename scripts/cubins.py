"""The parts of ``make cubin`` that are not make's: rules from the catalog, the compiler's place, the resource table.

python scripts/cubins.py rules --archs "89 90"    writes build/rules.mk and build/gen/
python scripts/cubins.py table --archs "89 90"    prints the table, writes build/cubin/sm_XX/manifest.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
sys.path.insert(0, str(ROOT))

from flashcore_drv import abi, catalog  # noqa: E402
from flashcore_drv.emulator.arch import ARCHS  # noqa: E402

NVCC_PACKAGES = "cuda-toolkit[nvcc,cccl]==13.0.*"
NVCC_FLAGS = "-O3 -std=c++20 -lineinfo -Werror all-warnings"
PTXAS_FLAGS = "-v --warn-on-spills --warn-on-local-memory-usage -Werror"


def find_nvcc() -> Path | None:
    """CUDA_HOME, then PATH, then the wheel nvidia-cuda-nvcc in this Python's environment."""
    candidates = [Path(home, "bin", "nvcc") for home in [os.environ.get("CUDA_HOME")] if home]
    if found := shutil.which("nvcc"):
        candidates.append(Path(found))
    candidates += [Path(p, "nvidia", "cu13", "bin", "nvcc") for p in sys.path if p]
    return next((c for c in candidates if c.is_file()), None)


def nvcc() -> Path:
    """The compiler, fetched from PyPI into this Python's environment where the machine has none."""
    if found := find_nvcc():
        return found
    print(f"no nvcc in CUDA_HOME or on PATH: installing {NVCC_PACKAGES} into {sys.prefix}", flush=True)
    pip = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", NVCC_PACKAGES])
    if pip.returncode == 0 and (found := find_nvcc()):
        return found
    sys.exit(
        "error: no nvcc in CUDA_HOME or on PATH, and PyPI could not be reached or gave none.\n"
        "Install the CUDA toolkit 13.0 or later (https://developer.nvidia.com/cuda-downloads) and put nvcc on PATH,\n"
        f"or, with a network: {sys.executable} -m pip install '{NVCC_PACKAGES}'"
    )


def toolkit_program(nvcc_path: Path, name: str) -> Path:
    """A program beside nvcc, following the wrapper script that some distributions put on PATH."""
    beside = nvcc_path.resolve().parent / name
    if beside.is_file():
        return beside
    dry_run = subprocess.run([nvcc_path, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    if top := re.search(r"^#\$ TOP=(.*)$", dry_run.stderr, re.M):
        beside = Path(top[1], "bin", name)
        if beside.is_file():
            return beside
    if found := shutil.which(name):
        return Path(found)
    sys.exit(f"error: {name} is neither beside {nvcc_path} nor on PATH; install the CUDA toolkit's {name}")


def local_archs() -> list[int]:
    """Compute capabilities of this machine's GPUs; none where there is no driver."""
    try:
        from cuda.bindings import driver

        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return []
        attribute = driver.CUdevice_attribute
        archs = []
        for ordinal in range(driver.cuDeviceGetCount()[1]):
            major = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ordinal)[1]
            minor = driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, ordinal)[1]
            archs.append(10 * major + minor)
        return sorted(set(archs))
    except (ImportError, RuntimeError):
        return []


def parse_archs(text: str) -> list[int]:
    """The wanted archs and the local GPUs'."""
    words = re.split(r"[\s,]+", text.strip())
    bad = [w for w in words if not re.fullmatch(r"(sm_)?\d{2,3}", w)]
    archs = sorted({int(w.removeprefix("sm_")) for w in words if w not in bad} | set(local_archs()))
    if bad or any(catalog.ptx_arch(a) is None for a in archs):
        known = ", ".join(str(a) for a in catalog.PTX_ARCHS)
        sys.exit(
            f'error: ARCHS="{text}": give compute capabilities of {min(catalog.PTX_ARCHS)} or above, '
            f'for example ARCHS="80 89 90"; kernels are compiled as PTX for {known}'
        )
    return archs


def write_if_changed(path: Path, text: str) -> None:
    """Leaves the time of an unchanged file alone, so that make rebuilds nothing for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)


def instantiation(spec: catalog.KernelSpec) -> str:
    """The translation unit of one kernel."""
    return f"""// Generated from flashcore_drv/catalog.py.
#include "abi_check.h"
#include "{spec.header}"

namespace flashcore {{
using Kernel = {spec.cpp};
}}
using flashcore::Kernel;
static_assert(sizeof(Kernel::Params) == {spec.params.size});

extern "C" __constant__ const flashcore::KernelInfo {spec.stem}_info = Kernel::info({abi.ABI_HASH:#x}ull);

extern "C" __global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksAnSm)
{spec.stem}(const __grid_constant__ Kernel::Params p) {{
    Kernel::run(p);
}}
"""


def rules(archs: list[int]) -> None:
    """Writes build/gen/*.cu and build/rules.mk."""
    compiler = nvcc()
    ptxas = toolkit_program(compiler, "ptxas")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", version)
    if release is None or int(release[1]) < 13:
        sys.exit(f"error: {compiler} is not CUDA 13.0 or later:\n{version}")
    write_if_changed(BUILD / "compiler.txt", f"{compiler}\n{version}{NVCC_FLAGS}\n{PTXAS_FLAGS}\n")
    write_if_changed(BUILD / "gen" / "abi_check.h", abi.check_header())

    # The emulator runs the PTX of its own arch (sm_89), so that is always there.
    wanted = {arch: set(catalog.kernels_of(arch)) for arch in {*archs, 89}}
    specs = [s for s in catalog.CATALOG if any(s in of_arch for of_arch in wanted.values())]
    ptx, cubins, lines = [], [], []
    for spec in specs:
        source, target = f"build/gen/{spec.stem}.cu", f"build/ptx/{spec.stem}.ptx"
        write_if_changed(ROOT / source, instantiation(spec))
        ptx.append(target)
        lines += [
            f"{target}: {source} build/compiler.txt",
            f"\t@{compiler} -ptx -arch=compute_{spec.target} {NVCC_FLAGS} -Icuda -Ibuild/gen "
            f"-MD -MP -MF {target}.d -MT {target} -o $@ $<",
            f"-include {target}.d",
        ]
        for arch in (a for a in archs if spec in wanted[a]):
            cubin, target_arch = f"build/cubin/sm_{arch}/{spec.stem}.cubin", spec.cubin_target(arch)
            cubins.append(cubin)
            lines += [
                f"{cubin}: {target}",
                f"\t@{ptxas} -arch=sm_{target_arch} {PTXAS_FLAGS} -o $@ $< 2> $@.log || {{ cat $@.log; exit 1; }}",
                # ptxas reports wgmma that it had to serialise as information, which -Werror lets pass.
                "\t@! grep -H 'C75[0-9][0-9]' $@.log || { rm -f $@; exit 1; }",
            ]
    for folder in (BUILD / "ptx", *(BUILD / "cubin" / f"sm_{arch}" for arch in archs)):
        folder.mkdir(parents=True, exist_ok=True)
    listed = {s.stem for s in catalog.CATALOG}
    for path in (p for folder in ("gen", "ptx") for p in (BUILD / folder).glob("*_sm*")):
        if path.name.split(".")[0] not in listed:  # it must not be loaded by accident
            path.unlink()
    head = [".DELETE_ON_ERROR:", f"all: {' '.join(ptx + cubins)}"]
    write_if_changed(BUILD / "rules.mk", "\n".join([*head, *lines]) + "\n")


def kernel_info(ptx: str, stem: str) -> dict[str, int | float]:
    """The info record of a kernel, from the constant in its PTX (trailing zeros are left out there)."""
    match = re.search(rf"{stem}_info\[{abi.KERNEL_INFO.size}\] = \{{([^}}]*)\}}", ptx)
    if match is None:
        sys.exit(f"error: {stem}.ptx has no {stem}_info")
    data = bytes(int(x) for x in match[1].split(","))
    return abi.KERNEL_INFO.unpack(data.ljust(abi.KERNEL_INFO.size, b"\0"))


def blocks_per_sm(arch: int, threads: int, registers: int, shared_bytes: int) -> int | None:
    """Blocks that fit an SM at once (registers are given to warps in units of 256, as in NVIDIA's occupancy tables).

    None for an architecture whose limits are not in the emulator's table.
    """
    sm = ARCHS.get(f"sm_{arch}")
    if sm is None:
        return None
    warps = -(-threads // sm.warp_size)
    registers_a_warp = -(-registers * sm.warp_size // 256) * 256
    return min(
        sm.max_blocks_per_multiprocessor,
        sm.max_threads_per_multiprocessor // threads,
        sm.registers_per_multiprocessor // (registers_a_warp * warps),
        sm.shared_per_multiprocessor // (shared_bytes + sm.shared_reserved_per_block),
    )


def resources(arch: int, spec: catalog.KernelSpec) -> dict[str, object]:
    """Registers, shared memory, spills and blocks per SM of one cubin."""
    cubin = BUILD / "cubin" / f"sm_{arch}" / f"{spec.stem}.cubin"
    log = Path(f"{cubin}.log").read_text()
    info = kernel_info((BUILD / "ptx" / f"{spec.stem}.ptx").read_text(), spec.stem)
    number = lambda pattern: int(m[1]) if (m := re.search(pattern, log)) else 0  # noqa: E731
    registers, static = number(r"Used (\d+) registers"), number(r"(\d+) bytes smem")
    shared, threads = int(info["shared_bytes"]), int(info["threads"])
    return {
        "stem": spec.stem,
        "sha256": hashlib.sha256(cubin.read_bytes()).hexdigest(),
        "registers": registers,
        "threads": threads,
        "shared_static_bytes": static,
        "shared_dynamic_bytes": shared,
        "spill_bytes": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "blocks_per_sm": blocks_per_sm(arch, threads, registers, static + shared),
        "abi_hash": f"{int(info['abi_hash']):#018x}",
    }


def table(archs: list[int]) -> None:
    """Prints what every kernel needs and writes the manifests."""
    compiler = (BUILD / "compiler.txt").read_text().splitlines()
    version = next(line for line in compiler if line.startswith("Cuda compilation tools")).split()[-1]
    spilled = []
    for arch in archs:
        folder = BUILD / "cubin" / f"sm_{arch}"
        rows = [resources(arch, s) for s in catalog.kernels_of(arch)]
        kept = {f"{r['stem']}.cubin" for r in rows} | {f"{r['stem']}.cubin.log" for r in rows}
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()
        manifest = {
            "arch": f"sm_{arch}",
            "nvcc": version,
            "abi_hash": f"{abi.ABI_HASH:#018x}",
            "kernels": rows,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        print(f"\nsm_{arch}: {len(rows)} kernels in {folder.relative_to(ROOT)} (nvcc {version})")
        print(f"{'stem':36} {'registers':>9} {'shared bytes':>16} {'spills':>6} {'blocks/SM':>9}")
        for r in rows:
            shared = f"{r['shared_static_bytes']} + {r['shared_dynamic_bytes']}"
            blocks = "-" if r["blocks_per_sm"] is None else r["blocks_per_sm"]
            print(f"{r['stem']:36} {r['registers']:>9} {shared:>16} {r['spill_bytes']:>6} {blocks:>9}")
            if r["spill_bytes"]:
                spilled.append(f"{r['stem']} (sm_{arch})")
    if spilled:
        sys.exit(f"error: registers spill in {', '.join(spilled)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["rules", "table"])
    parser.add_argument("--archs", default="89", help='compute capabilities, for example "80 89 90" (default: 89)')
    args = parser.parse_args()
    {"rules": rules, "table": table}[args.step](parse_archs(args.archs))


if __name__ == "__main__":
    main()
