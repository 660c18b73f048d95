"""The catalog: one word for each kernel, and exactly the kernels that are listed are built."""

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from flashcore_drv import abi, catalog
from flashcore_drv.catalog import CATALOG
from flashcore_drv.dtypes import BF16, F16
from flashcore_drv.images import build_folder

ENTRIES = pytest.mark.parametrize("spec", CATALOG, ids=lambda s: s.stem)
EMULATED_PTX_ARCH = 89  # its PTX is built whatever ARCHS says
BUILD = build_folder()
PTX, CUBIN = BUILD / "ptx", BUILD / "cubin"
BUILT_ARCHS = sorted(int(folder.name.removeprefix("sm_")) for folder in CUBIN.glob("sm_*"))
needs_build = pytest.mark.skipif(not BUILT_ARCHS, reason=f"nothing is built in {CUBIN}: make cubin")
BUILT = pytest.mark.parametrize("arch", BUILT_ARCHS or [None])


LARGEST_SHARED_KB = {80: 99, 89: 99, catalog.HOPPER: 227}
"""Of a block, by the PTX: what fits every GPU that runs it."""


def test_stems_are_unique() -> None:
    stems = [s.stem for s in CATALOG]
    assert len(stems) == len(set(stems))


@ENTRIES
def test_the_stem_says_what_the_kernel_is(spec) -> None:
    found = re.fullmatch(r"([a-z]+(?:_[a-z]+)*)_(f16|bf16)_([a-z]\d+)_sm(\d+a?)", spec.stem)
    assert found is not None
    assert found.groups() == (spec.family, spec.dtype.name, spec.size, spec.target)
    assert spec.target == ("90a" if spec.arch == catalog.HOPPER else str(spec.arch))


@ENTRIES
def test_the_entry_names_a_template_of_its_header(spec) -> None:
    name, arguments = re.fullmatch(r"(\w+)<(.*)>", spec.cpp).groups()
    assert re.search(rf"\bstruct {name} \{{", (ROOT / "cuda" / spec.header).read_text())
    element, size, *_ = arguments.split(", ")
    assert element == spec.dtype.cpp
    assert spec.size[1:] == size
    assert spec.params in abi.STRUCTS


def test_every_arch_and_dtype_has_the_same_kernels() -> None:
    """Hopper's own apart, which no other has; some of the others are built for it, too, and replace these there."""
    variants = {(arch, dtype): set() for arch in (*catalog.PTX_ARCHS, catalog.HOPPER) for dtype in (F16, BF16)}
    for s in CATALOG:
        variants[s.arch, s.dtype].add((s.family, s.size))
    own = [variants.pop((catalog.HOPPER, dtype)) for dtype in (F16, BF16)]
    tma = {(f, f"d{d}") for f, (*_, sizes) in catalog.TMA_VARIANTS.items() for d in sizes}
    besides = {(f, f"d{d}") for f in catalog.HOPPER_BESIDES for d in catalog.FLASH_VARIANTS[f][1]}
    assert own[0] == own[1] == tma | besides
    assert len(set(map(frozenset, variants.values()))) == 1
    assert own[0] & next(iter(variants.values())) == besides
    assert all(s.waits == (s.target == "90a") for s in CATALOG)


@given(arch=st.integers(50, 130))
def test_only_hopper_gets_its_own_kernels(arch) -> None:
    shared = [s for s in CATALOG if s.arch == catalog.ptx_arch(arch)]
    own = [s for s in catalog.kernels_of(arch) if s not in shared]
    assert own == [s for s in CATALOG if s.target == "90a" and arch == 90]
    assert {s.cubin_target(arch) for s in own} <= {"90a"}
    assert {s.cubin_target(arch) for s in shared} <= {str(arch)}
    assert len({(s.family, s.dtype, s.size) for s in catalog.kernels_of(arch)}) == len(catalog.kernels_of(arch))


@given(arch=st.integers(50, 130))
def test_a_gpu_gets_the_highest_ptx_that_it_can_run(arch) -> None:
    found = catalog.ptx_arch(arch)
    below = [a for a in catalog.PTX_ARCHS if a <= arch]
    assert (found is None) == (not below)
    assert found is None or (found in below and not [a for a in below if a > found])


@needs_build
def test_the_default_arch_is_built() -> None:
    text = (ROOT / "Makefile").read_text()
    assert int(re.search(r"^ARCHS \?= (\d+)$", text, re.M)[1]) in BUILT_ARCHS


@needs_build
def test_the_ptx_folder_holds_the_catalog_and_nothing_else() -> None:
    needed = {f"{s.stem}.ptx" for arch in (*BUILT_ARCHS, EMULATED_PTX_ARCH) for s in catalog.kernels_of(arch)}
    there = {path.name for path in PTX.iterdir()}
    assert needed <= there
    assert there <= {f"{s.stem}.ptx{end}" for s in CATALOG for end in ("", ".d")}


@needs_build
@pytest.mark.parametrize("path", sorted(PTX.glob("*.ptx")), ids=lambda p: p.stem)
def test_the_ptx_has_the_kernel_of_its_name(path) -> None:
    text = path.read_text()
    spec = next(s for s in CATALOG if s.stem == path.stem)
    assert re.findall(r"\.visible \.entry (\w+)\(", text) == [path.stem]
    assert re.findall(r"^\.target sm_(\w+)", text, re.M) == [spec.target]
    assert len(re.findall(rf"\.const .*\b{path.stem}_info\[{abi.KERNEL_INFO.size}\]", text)) == 1


@needs_build
@BUILT
def test_the_cubin_folder_holds_the_catalog_and_nothing_else(arch) -> None:
    wanted = {f"{s.stem}.cubin{end}" for s in catalog.kernels_of(arch) for end in ("", ".log")}
    assert {path.name for path in (CUBIN / f"sm_{arch}").iterdir()} == wanted | {"manifest.json"}


@needs_build
@BUILT
def test_the_cubin_has_the_kernel_of_its_name(arch) -> None:
    for spec in catalog.kernels_of(arch):
        image = (CUBIN / f"sm_{arch}" / f"{spec.stem}.cubin").read_bytes()
        assert image.startswith(b"\x7fELF")
        assert set(re.findall(rb"\0\.text\.(\w+)\0", image)) == {spec.stem.encode()}
        assert abi.ABI_HASH.to_bytes(8, "little") in image, "built from other structs"


@needs_build
@BUILT
def test_the_manifest_is_complete_and_right(arch) -> None:
    folder = CUBIN / f"sm_{arch}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["arch"] == f"sm_{arch}"
    assert manifest["abi_hash"] == f"{abi.ABI_HASH:#018x}"
    assert re.fullmatch(r"V\d+\.\d+\.\d+", manifest["nvcc"])
    assert [k["stem"] for k in manifest["kernels"]] == [s.stem for s in catalog.kernels_of(arch)]
    for kernel in manifest["kernels"]:
        image = (folder / f"{kernel['stem']}.cubin").read_bytes()
        log = (folder / f"{kernel['stem']}.cubin.log").read_text()
        assert kernel["sha256"] == hashlib.sha256(image).hexdigest()
        assert kernel["abi_hash"] == manifest["abi_hash"]
        assert f"Used {kernel['registers']} registers" in log
        assert kernel["spill_bytes"] == 0
        assert kernel["threads"] % 32 == 0
        assert 0 < kernel["threads"] <= 1024
        assert kernel["registers"] * kernel["threads"] <= 65536
        assert kernel["blocks_per_sm"] is None or kernel["blocks_per_sm"] >= 1
        spec = next(s for s in CATALOG if s.stem == kernel["stem"])
        shared_bytes = kernel["shared_static_bytes"] + kernel["shared_dynamic_bytes"]
        assert shared_bytes <= LARGEST_SHARED_KB[spec.arch] * 1024


def test_no_kernel_adds_by_atomics() -> None:
    found = sorted((build_folder() / "ptx").glob("*.ptx"))
    if not found:
        pytest.skip("nothing is built: make cubin")
    assert [p.name for p in found if re.search(r"\b(atom|red)\.", p.read_text())] == []
