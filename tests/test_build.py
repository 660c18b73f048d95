"""The build: what a change rebuilds, what fails it, and what it says without a compiler. In copies of the sources."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from flashcore_drv import abi, catalog
from flashcore_drv.catalog import CATALOG

NVCC = shutil.which("nvcc") or next(
    (str(p) for p in (Path(f, "nvidia", "cu13", "bin", "nvcc") for f in sys.path) if p.is_file()), None
)
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
pytestmark = pytest.mark.xdist_group("build")
FEW = ("qk_wmma_f16_d64_sm89", "softmax_f16_w1_sm89", "softmax_bf16_w8_sm89", "pv_wmma_f16_d64_sm89")
FAMILIES = {s.stem: s.header for s in CATALOG if s.stem in FEW}
HEADERS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "cuda").rglob("*.*h"))

CATALOG_END = """
CATALOG = tuple(s for s in CATALOG if s.stem in {stems!r})
"""


def copy_sources(folder, stems=FEW):
    """What the build needs, with a catalog of a few kernels."""
    for name in ("cuda", "flashcore_drv", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", folder)
    with (folder / "flashcore_drv" / "catalog.py").open("a") as file:
        file.write(CATALOG_END.format(stems=tuple(stems)))
    return folder


def build(folder, *args, archs="89", **env):
    """make cubin, with this Python."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "ARCHS"))}
    found |= {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", **env}
    python = [f"PYTHON={sys.executable}", f"OWN_PYTHON={sys.executable}"]
    command = ["make", "cubin", f"ARCHS={archs}", "JOBS=2", *python, *args]
    return subprocess.run(command, cwd=folder, env=found, capture_output=True, text=True, timeout=300)


def rules_only(folder, archs="89", **env):
    """The first step of make cubin alone."""
    found = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", **env}
    command = [sys.executable, "scripts/cubins.py", "rules", "--archs", archs]
    return subprocess.run(command, cwd=folder, env=found, capture_output=True, text=True, timeout=300)


def would_build(folder, changed=None):
    """The targets that make would make again if a file were changed."""
    command = ["make", "-n", "-f", "build/rules.mk", *(["-W", changed] if changed else []), "all"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return set(re.findall(r" -o (build/\S+)", ran.stdout))


def targets_of(stems):
    return {f"build/ptx/{s}.ptx" for s in stems} | {f"build/cubin/sm_89/{s}.cubin" for s in stems}


def includes(header):
    """The headers of ours that a header includes, with itself, by reading them."""
    text = (ROOT / header).read_text()
    found = {header}
    for name in re.findall(r'^#include "(.+)"$', text, re.M):
        found |= includes(f"cuda/{name}")
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy that is built."""
    folder = copy_sources(tmp_path_factory.mktemp("project"))
    ran = build(folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (folder / "build" / "said.txt").write_text(ran.stdout)
    return folder


# ---- what is built


@needs_nvcc
def test_the_table_and_the_manifest(project) -> None:
    said = (project / "build" / "said.txt").read_text()
    manifest = json.loads((project / "build" / "cubin" / "sm_89" / "manifest.json").read_text())
    assert {k["stem"] for k in manifest["kernels"]} == set(FEW)
    for kernel in manifest["kernels"]:
        shared = f"{kernel['shared_static_bytes']} + {kernel['shared_dynamic_bytes']}"
        row = next(line for line in said.splitlines() if line.startswith(f"{kernel['stem']} "))
        assert row.split() == [
            kernel["stem"], str(kernel["registers"]), *shared.split(), "0", str(kernel["blocks_per_sm"]),
        ]  # fmt: skip
    assert f"sm_89: {len(FEW)} kernels" in said


@needs_nvcc
def test_a_second_build_does_nothing(project) -> None:
    files = [p for p in (project / "build").rglob("*") if p.suffix in (".cu", ".h", ".ptx", ".cubin", ".mk", ".d")]
    before = {p: p.stat().st_mtime_ns for p in files}
    assert would_build(project) == set()
    ran = build(project)
    assert ran.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in files} == before


@needs_nvcc
@pytest.mark.parametrize("header", HEADERS)
def test_a_changed_header_rebuilds_what_includes_it(project, header) -> None:
    every_unit = {f"cuda/{s.header}" for s in abi.STRUCTS}  # through the generated check
    using = [stem for stem, top in FAMILIES.items() if header in includes(f"cuda/{top}") or header in every_unit]
    assert would_build(project, header) == targets_of(using)


@needs_nvcc
@pytest.mark.parametrize("stem", FEW)
def test_a_changed_unit_rebuilds_itself(project, stem) -> None:
    assert would_build(project, f"build/gen/{stem}.cu") == targets_of([stem])
    assert would_build(project, f"build/ptx/{stem}.ptx") == {f"build/cubin/sm_89/{stem}.cubin"}


@needs_nvcc
@pytest.mark.parametrize("file", ["build/compiler.txt", "build/gen/abi_check.h"])
def test_another_compiler_or_abi_rebuilds_everything(project, file) -> None:
    assert would_build(project, file) == targets_of(FEW)


@needs_nvcc
def test_every_header_is_used_by_a_kernel() -> None:
    used = {header for spec in CATALOG for header in includes(f"cuda/{spec.header}")}
    assert set(HEADERS) == used


@needs_nvcc
def test_a_kernel_that_is_dropped_disappears_and_a_header_may_go(project, tmp_path) -> None:
    shutil.copytree(project, tmp_path / "copy")
    folder = tmp_path / "copy"
    kept = FEW[0]
    with (folder / "flashcore_drv" / "catalog.py").open("a") as file:
        file.write(CATALOG_END.format(stems=(kept,)))
    (folder / "cuda" / "ptx" / "exp2.cuh").unlink()  # of the softmax kernels alone
    moved = folder / "cuda" / "ptx" / "copies.cuh"
    (folder / "cuda" / "ptx" / "cp_async.cuh").rename(moved)
    matrix = folder / "cuda" / "attention" / "matrix.cuh"
    matrix.write_text(matrix.read_text().replace("ptx/cp_async.cuh", "ptx/copies.cuh"))
    ran = build(folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    there = {p.name for kind in ("ptx", "cubin/sm_89", "gen") for p in (folder / "build" / kind).iterdir()}
    ends = (".ptx", ".ptx.d", ".cubin", ".cubin.log", ".cu")
    assert there == {f"{kept}{end}" for end in ends} | {"manifest.json", "abi_check.h"}


@needs_nvcc
def test_several_archs_share_their_ptx(project, tmp_path) -> None:
    shutil.copytree(project, tmp_path / "copy")
    ran = build(tmp_path / "copy", archs="sm_89, 90")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    folder = tmp_path / "copy" / "build"
    for arch in ("sm_89", "sm_90"):
        cubins = {p.stem for p in (folder / "cubin" / arch).glob("*.cubin")}
        assert cubins == set(FEW)
        manifest = json.loads((folder / "cubin" / arch / "manifest.json").read_text())
        assert manifest["arch"] == arch
    assert {p.stem for p in (folder / "ptx").glob("*.ptx")} == set(FEW)


HOPPERS = "flash_fwd_tma_f16_d64_sm90a"


@needs_nvcc
def test_hopper_alone_gets_its_own_kernels(tmp_path) -> None:
    folder = copy_sources(tmp_path, [FEW[1], HOPPERS])
    ran = build(folder, archs="89 90 100")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    cubins = {p.parent.name: {x.stem for x in p.parent.glob("*.cubin")} for p in folder.glob("build/cubin/*/*.json")}
    assert cubins == {"sm_89": {FEW[1]}, "sm_90": {FEW[1], HOPPERS}, "sm_100": {FEW[1]}}
    rules = (folder / "build" / "rules.mk").read_text()
    assert re.search(r"-arch=compute_90a .*-o \$@ \$<$", rules, re.M)
    assert re.findall(r"ptxas -arch=(\S+)", rules) == ["sm_89", "sm_90", "sm_100", "sm_90a"]
    ran = rules_only(folder, "89 100")
    assert ran.returncode == 0
    assert HOPPERS not in (folder / "build" / "rules.mk").read_text()


@needs_nvcc
def test_one_kernel_can_be_built_alone(tmp_path) -> None:
    folder = copy_sources(tmp_path, [FEW[1], HOPPERS])
    assert rules_only(folder, "89 90").returncode == 0
    target = f"build/ptx/{HOPPERS}.ptx"
    ran = subprocess.run(["make", "-f", "build/rules.mk", target], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert [p.stem for p in folder.glob("build/ptx/*.ptx")] == [HOPPERS]
    assert re.search(r"^\.target sm_90a$", (folder / target).read_text(), re.M)


# ---- what fails it


@pytest.mark.parametrize("archs", ["75", "sm_70 89", "eighty", "8.9", "", "89 x", "-1", "89a"])
def test_bad_archs(tmp_path, archs) -> None:
    ran = rules_only(copy_sources(tmp_path), archs)
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f'error: ARCHS="{archs}": give compute capabilities of {min(catalog.PTX_ARCHS)} or above')
    assert 'for example ARCHS="' in line
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("arch", ["100", "121"])
@needs_nvcc
def test_an_arch_that_only_the_compiler_knows(tmp_path, arch) -> None:
    ran = build(copy_sources(tmp_path, FEW[1:2]), archs=arch)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    manifest = json.loads((tmp_path / "build" / "cubin" / f"sm_{arch}" / "manifest.json").read_text())
    assert [(k["stem"], k["blocks_per_sm"]) for k in manifest["kernels"]] == [(FEW[1], None)]


@needs_nvcc
def test_an_arch_that_nobody_knows(tmp_path) -> None:
    ran = build(copy_sources(tmp_path, FEW[1:2]), archs="999")
    assert ran.returncode != 0
    assert "sm_999" in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr


def pip_that_fails(folder):
    """A module named pip that writes down what it is asked for and has no network."""
    (folder / "pip").mkdir(parents=True)
    (folder / "pip" / "__init__.py").write_text("")
    (folder / "pip" / "__main__.py").write_text(
        f"import sys\nopen({str(folder / 'asked.txt')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        "sys.exit('error: no network')\n"
    )
    return folder


def test_no_compiler_and_no_network(tmp_path) -> None:
    folder = copy_sources(tmp_path / "project")
    pip = pip_that_fails(tmp_path / "pip_folder")
    code = (  # as scripts/cubins.py rules, where no compiler came with a wheel either
        "import runpy, sys; from pathlib import Path; real = Path.is_file; "
        "Path.is_file = lambda self, *a: self.name != 'nvcc' and real(self, *a); "
        "sys.argv = ['cubins.py', 'rules']; runpy.run_path('scripts/cubins.py', run_name='__main__')"
    )
    env = {k: v for k, v in os.environ.items() if k != "CUDA_HOME"}
    env |= {"PATH": str(tmp_path), "PYTHONPATH": f"{pip}:{folder}", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert "cuda-toolkit[nvcc,cccl]==13.0.*" in (pip / "asked.txt").read_text()
    assert "error: no nvcc in CUDA_HOME or on PATH, and PyPI could not be reached" in ran.stderr
    assert "Install the CUDA toolkit 13.0 or later" in ran.stderr
    assert f"{sys.executable} -m pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (folder / "build").exists()


def toolkit(folder, nvcc="", ptxas=""):
    """A CUDA_HOME whose programs are ours with something done after them."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    beside = Path(NVCC).resolve().parent / "ptxas"
    real_ptxas = str(beside) if beside.is_file() else shutil.which("ptxas")
    for name, real, more in (("nvcc", NVCC, nvcc), ("ptxas", real_ptxas, ptxas)):
        (programs / name).write_text(f'#!/bin/sh\n"{real}" "$@" || exit 1\n{more}\n')
        (programs / name).chmod(0o755)
    return {"CUDA_HOME": str(folder)}


@needs_nvcc
def test_a_serialised_wgmma_fails(tmp_path) -> None:
    folder = copy_sources(tmp_path / "project", FEW[1:2])
    said = "ptxas info    : (C7519) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    env = toolkit(tmp_path / "cuda", ptxas=f'echo "{said}" >&2')
    for _ in range(2):  # and again, since nothing of it may be left
        ran = build(folder, **env)
        assert ran.returncode != 0
        assert "C7519" in ran.stdout + ran.stderr
        assert not list((folder / "build" / "cubin").rglob("*.cubin"))
        assert not list((folder / "build" / "cubin").rglob("manifest.json"))


@needs_nvcc
def test_an_old_compiler_is_refused(tmp_path) -> None:
    folder = copy_sources(tmp_path / "project")
    env = toolkit(tmp_path / "cuda")
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    ran = rules_only(folder, **env)
    assert ran.returncode == 1
    assert f"error: {nvcc} is not CUDA 13.0 or later" in ran.stderr


def softmax_with(folder, line):
    """A change of the softmax kernel's first line."""
    header = folder / "cuda" / "unfused" / "softmax.cuh"
    first = "        int index = blockIdx.x;"
    text = header.read_text()
    assert text.count(first) == 1
    header.write_text(text.replace(first, f"{line}\n{first}"))


SPILL = """
        float many[300];
#pragma unroll
        for (int i = 0; i < 300; ++i) many[i] = static_cast<const volatile float*>(p.s.data)[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 300; ++i) static_cast<volatile float*>(p.s.data)[i] = many[299 - i];
"""
DEFECTS = {
    "a spill": (SPILL, "pill"),
    "local memory": (
        "        volatile float many[8];\n"
        "        for (int i = 0; i < p.seqlen_k; ++i) many[i % 8] = p.softmax_scale;\n"
        "        if (many[p.batch] == 3.f) return;",
        "ocal memory",
    ),
    "a compiler warning": ("        int unused;", "unused"),
    "a wrong struct": ("        static_assert(sizeof(Params) == 1);", "static assertion failed"),
}


@needs_nvcc
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_fails_the_build(tmp_path, defect) -> None:
    line, complaint = DEFECTS[defect]
    folder = copy_sources(tmp_path, ["softmax_f16_w1_sm89"])
    softmax_with(folder, line)
    ran = build(folder)
    assert ran.returncode != 0
    assert complaint in ran.stdout + ran.stderr
    assert not list((folder / "build").rglob("*.cubin"))


@needs_nvcc
def test_structs_that_differ_from_the_host_fail_the_build(tmp_path) -> None:
    folder = copy_sources(tmp_path, ["softmax_f16_w1_sm89"])
    header = folder / "cuda" / "abi" / "kernel_info.h"
    header.write_text(header.read_text().replace("int32_t tile_rows;", "int64_t tile_rows;"))
    ran = build(folder)
    assert ran.returncode != 0
    assert "KernelInfo.tile_cols: offset differs from flashcore_drv/abi.py" in ran.stdout + ran.stderr
    assert not list((folder / "build").rglob("*.ptx"))


def test_spills_in_the_log_fail_the_table(tmp_path) -> None:
    """Where a ptxas of another release counts them without a warning."""
    code = """
import sys
from pathlib import Path
sys.path.insert(0, "scripts")
import cubins
from flashcore_drv import abi
info = abi.KERNEL_INFO.pack(dict.fromkeys(abi.KERNEL_INFO.offsets, 1) | {"threads": 256, "shared_bytes": 64})
folder = Path("build/cubin/sm_89")
folder.mkdir(parents=True)
Path("build/ptx").mkdir()
Path("build/compiler.txt").write_text("nvcc\\nCuda compilation tools, release 13.0, V13.0.88\\n")
for spec in cubins.catalog.CATALOG:
    Path(f"build/ptx/{spec.stem}.ptx").write_text(f"{spec.stem}_info[{len(info)}] = {{{', '.join(map(str, info))}}};")
    (folder / f"{spec.stem}.cubin").write_bytes(b"x")
    (folder / f"{spec.stem}.cubin.log").write_text(
        "    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads\\nUsed 40 registers, 96 bytes smem\\n")
cubins.table([89])
"""
    folder = copy_sources(tmp_path, FEW[:1])
    env = {**os.environ, "PYTHONPATH": str(folder)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr == f"error: registers spill in {FEW[0]} (sm_89)\n"
    kernel = json.loads((folder / "build" / "cubin" / "sm_89" / "manifest.json").read_text())["kernels"][0]
    assert (kernel["spill_bytes"], kernel["registers"], kernel["shared_static_bytes"]) == (20, 40, 96)
    # 256 threads, 40 registers: 48 warps of 1280 registers are 61440, so threads bind: 1536 / 256
    assert kernel["blocks_per_sm"] == 6
