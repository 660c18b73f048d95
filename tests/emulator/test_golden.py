"""The emulator gives what a GPU gave: bit for bit in data movement and integers, within stated ulps in arithmetic.

Tensor cores. NVIDIA does not document how they add. The recordings show that products are exact, that all terms of
an instruction, the accumulator among them, are aligned to the largest and cut below a last bit (2^-25 of the largest
term's power of two for f16, bf16 and tf32; 2^-13 for wgmma with 8-bit floats: `test_where_the_tensor_cores_cut`), and
that the sum is cut, not rounded, to f32. The emulator adds in double precision and rounds once. With operands in
-1 .. 1 no term is above 1, so the k products and the accumulator lose less than k + 1 units, the cut to f32 less than
one ulp of the result and the emulator half an ulp: they agree within k + 1 units and 2 ulps. Sums of small whole
numbers are exact in both, and compared bit for bit.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from golden import files, tma
from golden.cases import CASES
from golden.kernel import Case, Close
from golden.matrix import UNIT, UNIT_8BIT, tail_terms

from flashcore_drv.emulator import Checks, DeviceMemory, EmulationError, launch, parse
from flashcore_drv.emulator.arch import named
from flashcore_drv.emulator.instructions.tma import encode_tensor_map

FAMILIES = sorted({case.family for case in CASES.values()})
GOLDENS = {name: held for family in FAMILIES for name, held in files.read(family).items()}
FLOATS = {"f16": "f2", "f32": "f4", "f64": "f8", "f16x2": "f2"}


def encoded(case: Case, addresses: dict[str, int]) -> list[bytes]:
    d = pytest.importorskip("cuda.bindings.driver")
    maps = []
    for m in case.maps:
        maps.append(
            encode_tensor_map(
                data_type=int(getattr(d.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{m.kind}")),
                address=addresses[m.array],
                dims=m.dims,
                strides=m.byte_strides,
                box=m.box,
                element_strides=m.steps,
                swizzle=int(getattr(d.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{m.swizzle}")),
                oob_fill=int(m.fill_nan),
            )
        )
    return maps


def emulated(case: Case) -> dict[str, np.ndarray]:
    """The outputs of a case, run by the emulator under all its checks."""
    program = parse(case.ptx)
    memory = DeviceMemory()
    entry = program.entries["golden"]
    initial = {**case.inputs, **{name: output.initial for name, output in case.outputs.items()}}
    addresses = {}
    for name, array in initial.items():
        # in 16 bytes, which a tensor store writes as a whole; on a GPU there is more behind an array as well
        addresses[name] = memory.allocate(-(-array.nbytes // 16) * 16, name)
        memory.write(addresses[name], np.ascontiguousarray(array))
    globals_ = {}
    for name, variable in program.globals.items():
        globals_[name] = memory.allocate(variable.size, name)
        memory.write(globals_[name], variable.data)
    values = [*encoded(case, addresses), np.array(list(addresses.values()), np.uint64).tobytes()]
    bank = bytearray(max(p.offset + p.size for p in entry.params))
    for param, value in zip(entry.params, values):
        bank[param.offset : param.offset + len(value)] = value
    launch(
        entry,
        program,
        params=bytes(bank),
        grid=(case.blocks, 1, 1),
        block=(case.threads, 1, 1),
        dynamic_shared_bytes=0,
        memory=memory,
        globals_=globals_,
        limits=named(case.target).limits,
        checks=Checks(),
    )
    return {
        name: memory.read(addresses[name], o.initial.nbytes).view(o.initial.dtype).reshape(o.initial.shape)
        for name, o in case.outputs.items()
    }


def as_float(bits: np.ndarray, kind: str) -> np.ndarray:
    """Values (float64) of an output; packed ones become twice as many."""
    bits = np.ascontiguousarray(bits)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        if kind in FLOATS:
            return bits.view(FLOATS[kind]).astype(np.float64)
        return (bits.view("u2").astype("u4") << 16).view("f4").astype(np.float64)


def ordered(bits: np.ndarray, kind: str) -> np.ndarray:
    """An integer for each floating-point number, one step apart where the numbers (or the zeros) are neighbours."""
    size = {"f32": 4, "f64": 8}.get(kind, 2)
    signed = np.ascontiguousarray(bits).view(f"i{size}")
    return np.where(signed < 0, signed ^ np.iinfo(signed.dtype).max, signed).astype(np.int64)


def ulp(magnitude: np.ndarray, kind: str) -> np.ndarray:
    """The last place of numbers of a type, float64."""
    bits, smallest = {"f64": (52, -1022), "f32": (23, -126), "bf16": (7, -126), "bf16x2": (7, -126)}.get(
        kind, (10, -14)
    )
    _, exponent = np.frexp(magnitude)
    return np.ldexp(1.0, np.maximum(exponent - 1, smallest) - bits)


def wrong(got: np.ndarray, wanted: np.ndarray, close: Close) -> np.ndarray:
    """Which elements are further apart than `close` allows."""
    if not close.kind:
        return got != wanted
    a, b = as_float(got, close.kind), as_float(wanted, close.kind)
    p, q = ordered(got, close.kind), ordered(wanted, close.kind)
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(a - b) <= close.absolute + close.ulps * ulp(np.maximum(np.abs(a), np.abs(b)), close.kind)
        steps = np.maximum(p, q).view("u8") - np.minimum(p, q).view("u8")  # fits where int64 would overflow
        near = near & (close.absolute > 0) | (steps <= close.ulps)
    return np.where(np.isnan(a) | np.isnan(b), np.isnan(a) != np.isnan(b), ~near)


def explain(case: Case, name: str, got: np.ndarray, wanted: np.ndarray, bad: np.ndarray) -> str:
    width = got.size // bad.size if bad.size < got.size else 1
    first = int(np.flatnonzero(bad)[0]) * width * got.size // (bad.size * width)
    operands = {k: f"{v.reshape(-1)[first]:#x}" for k, v in case.inputs.items() if v.size == got.size}
    return (
        f"{name}: {int(bad.sum())} of {bad.size} differ, first element {first}: "
        f"{got.reshape(-1)[first]:#x}, the GPU gave {wanted.reshape(-1)[first]:#x}, operands {operands}"
    )


@pytest.mark.parametrize("name", CASES)
def test_emulator_gives_what_the_gpu_gave(name: str) -> None:
    case = CASES[name]
    assert name in GOLDENS, f"{name} was never recorded: python scripts/record_golden.py --only '{name}' on a GPU"
    digest, data = GOLDENS[name]
    assert digest == case.digest(), (
        f"{name} changed since it was recorded: scripts/record_golden.py --only '{name}' on a GPU"
    )
    got, problems = emulated(case), []
    for output, wanted in files.split(case, data).items():
        bad = wrong(got[output], wanted, case.outputs[output].close)
        if bad.any():
            problems.append(explain(case, output, got[output], wanted, bad))
    assert not problems, "\n".join([f"{name} ({case.section})", *problems])


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith(".tail")])
def test_where_the_tensor_cores_cut(name: str) -> None:
    shape, kind = re.search(r"k(\d+)\.f32\.(\w+)", name).groups()
    terms = np.abs([term for term, _ in tail_terms(int(shape), kind)])
    rows = files.split(CASES[name], GOLDENS[name][1])["out"].view("f4")[:32:4]  # the first thread of each row
    smallest_seen = terms[np.concatenate([rows[:, 0], rows[:, 2]]) != 1].min()
    if kind[0] == "e" and not name.startswith("wgmma"):
        assert smallest_seen == terms.min()  # computed as f16 on sm_90: the rows do not reach the cut
    else:
        assert smallest_seen == (UNIT_8BIT if kind[0] == "e" else UNIT)


def refused() -> dict[str, Case]:
    """What an H200 answered with CUDA_ERROR_ILLEGAL_INSTRUCTION."""
    cases = [
        tma.load(f"refused.{at}", tma.padded_map("a", "FLOAT16", (40, 20), (16, 8)), [at]) for at in ((-3, 0), (33, 2))
    ]
    cases += [
        tma.store(f"refused.{at}", tma.padded_map("d", "FLOAT16", (40, 20), (16, 8)), [at]) for at in ((-8, 0), (4, 2))
    ]
    return {case.name: case for case in cases}


@pytest.mark.parametrize("case", refused().values(), ids=list(refused()))
def test_tensor_copies_that_the_gpu_refuses(case: Case) -> None:
    with pytest.raises(EmulationError, match=r"first coordinate|negative"):
        emulated(case)


def test_no_golden_without_a_case() -> None:
    assert set(GOLDENS) <= set(CASES)


def test_every_golden_names_its_recording() -> None:
    recordings = json.loads((files.FOLDER / files.RECORDED).read_text())
    named_cases = [name for recording in recordings for name in recording["cases"]]
    assert sorted(named_cases) == sorted(GOLDENS)
    for recording in recordings:
        assert {"gpu", "driver", "cuda", "date", "commit"} <= set(recording)


def test_every_tolerance_has_a_reason() -> None:
    for case in CASES.values():
        for output in case.outputs.values():
            assert output.close.why or not (output.close.ulps or output.close.absolute), case.name
