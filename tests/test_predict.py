"""scripts/predict.py: SASS is read, paths are the ones that run, and the machine counts as its rules say."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from prediction import sass, table  # noqa: E402
from prediction.gpus import GPUS  # noqa: E402
from prediction.grid import last_end  # noqa: E402
from prediction.machine import busy_cycles, pipe_cycles, pipe_of, simulate  # noqa: E402
from prediction.model import KernelModel  # noqa: E402
from shapes import Shape  # noqa: E402

from flashcore_drv.catalog import CATALOG  # noqa: E402
from flashcore_drv.images import build_folder  # noqa: E402

L4, H200 = GPUS["l4"], GPUS["h200"]
D64 = ROOT / "tests" / "golden" / "sass" / "flash_fwd_f16_d64_sm89.sass.gz"  # nvdisasm -c -hex of main, 2026-11-23


def text_of(*lines: str) -> str:
    """nvdisasm's form of some instructions ("!8 W2 R1 w3 OP …": stall, scoreboards, mask of waits) and labels."""
    out, address = [], 0
    for line in lines:
        if line.endswith(":"):
            out.append(f".{line}")
            continue
        stall, writes, reads, waits = 1, 7, 7, 0
        words = line.split()
        while words[0][0] in "!WRw" and words[0][1:].isdigit():
            word = words.pop(0)
            value = int(word[1:])
            stall, writes, reads, waits = (
                value if mark == word[0] else old
                for mark, old in (("!", stall), ("W", writes), ("R", reads), ("w", waits))
            )
        control = (stall | 1 << 4 | writes << 5 | reads << 8 | waits << 11) << 41
        out.append(f"        /*{address:04x}*/                   {' '.join(words)} ;   /* 0x000000ffff457224 */")
        out.append(f"                                                /* 0x{control:016x} */")
        address += 16
    return "\n".join(out)


def code_of(*lines: str) -> list[sass.Instruction]:
    return sass.parse(text_of(*lines))[0]


def golden() -> str:
    return gzip.decompress(D64.read_bytes()).decode()


# ---- SASS


def test_an_instruction_and_its_fields() -> None:
    (x,) = code_of("!5 W2 R1 w33 @!P0 LDSM.16.M88.4 R84, [R16+0x8000]")
    assert (x.opcode, x.name, x.predicate, x.operands) == ("LDSM.16.M88.4", "LDSM", "@!P0", "R84, [R16+0x8000]")
    assert (x.stall, x.writes, x.reads, x.waits) == (5, 2, 1, 33)
    (x,) = code_of("MOV R1, R2")
    assert (x.writes, x.reads, x.predicate) == (None, None, "")


def test_branches_have_targets() -> None:
    code, labels = sass.parse(text_of("L_x_1:", "MOV R1, R2", "@P0 BRA `(.L_x_1)", "EXIT"))
    assert code[1].target == "L_x_1"
    assert labels == {"L_x_1": 0}


def test_text_without_encodings_is_refused() -> None:
    with pytest.raises(ValueError, match="no SASS with encodings"):
        sass.parse("        /*0000*/                   MOV R1, R2 ;\n")


def test_the_golden_code_is_read_whole() -> None:
    code, _ = sass.parse(golden())
    assert [x.address for x in code] == list(range(0, 16 * len(code), 16))
    assert code[-1].name in ("NOP", "BRA")


LOOP = (
    "MOV R0, R1",
    "L_x_1:",  # the loop: a branch around the copies, then either way to the products
    "@P1 BRA `(.L_x_2)",
    "LDGSTS.E.BYPASS.128 [R1], [R2.64]",
    "L_x_2:",
    "@P2 BRA `(.L_x_3)",
    "HMMA.16816.F32 R4, R8, R12, RZ",
    "BRA `(.L_x_4)",
    "L_x_3:",
    "HMMA.16816.F32 R4, R8, R12, RZ",
    "FMNMX R1, R2, R3, !PT",
    "FMNMX R1, R2, R3, !PT",
    "L_x_4:",
    "@P0 BRA `(.L_x_1)",
    "STG.E.128 [R2.64], R4",
    "EXIT",
)


def test_loops_and_paths() -> None:
    flow = sass.Flow(*sass.parse(text_of(*LOOP)))
    (header,) = flow.product_loops()
    latches = {latch for latch, _ in flow.back}
    paths = flow.paths(header, flow.loops[header], latches, ["HMMA", "LDGSTS", "FMNMX"])
    assert sorted(paths) == [(1, 0, 0), (1, 0, 2), (1, 1, 0), (1, 1, 2)]
    names = [x.name for x in paths[1, 1, 0]]
    assert names == ["BRA", "LDGSTS", "BRA", "HMMA", "BRA", "BRA"]


def test_of_equal_paths_the_shortest_or_the_longest() -> None:
    flow = sass.Flow(*sass.parse(text_of("@P0 BRA `(.L_x_1)", "MOV R1, R2", "L_x_1:", "EXIT")))
    ends = {node for node in flow.order if flow.blocks[node][-1].name == "EXIT"}
    lengths = [len(flow.paths(0, None, ends, ["HMMA"], longest=x)[0,]) for x in (False, True)]
    assert lengths == [2, 3]


def test_a_divergent_branch_is_never_taken() -> None:
    flow = sass.Flow(*sass.parse(text_of("BRA.DIV ~URZ, `(.L_x_1)", "EXIT", "L_x_1:", "HMMA.16816.F32 R0, R1, R2, R3")))
    assert flow.count(flow.order, "HMMA") == 0


def test_the_parts_of_the_golden_kernel() -> None:
    code = sass.kernel_code(golden(), threads=128, rows=128, head_dim=64)
    assert (code.keys, code.rounds_less) == (64, 0)
    counts = {name: sum(x.name == name for x in code.tile) for name in ("HMMA", "LDSM", "MUFU", "LDGSTS", "BAR")}
    # of a warp with 32 rows: 2 products, 64 keys, head_dim 64; K and V read once; an exponential for each score; a
    # quarter of the threads' copies of K and V
    assert counts == {"HMMA": 128, "LDSM": 32, "MUFU": 64, "LDGSTS": 8, "BAR": 1}
    assert not any(x.name in ("FMNMX", "FSEL") for x in code.tile)  # it speculates, and needs no mask
    assert sum(x.name == "FSEL" for x in code.masked) == 64
    assert sum(x.name == "FMNMX" for x in code.first) > sum(x.name == "FMNMX" for x in code.masked) > 0
    assert not any(x.name == "HMMA" for x in (*code.prologue, *code.epilogue))
    assert sum(x.name == "STG" for x in code.epilogue) >= 8


def test_code_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="no loop with HMMA"):
        sass.kernel_code(text_of("MOV R1, R2", "EXIT"), threads=128, rows=64, head_dim=64)
    with pytest.raises(ValueError, match="no way through the loop has the"):
        sass.kernel_code(text_of(*LOOP), threads=128, rows=128, head_dim=8)


def test_nvdisasm_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sass, "find_nvdisasm", lambda: None)
    with pytest.raises(sass.MissingTool, match="pip install nvidia-cuda-nvdisasm"):
        sass.disassemble(tmp_path / "x.cubin")


# ---- the machine


def test_pipes_and_their_cycles() -> None:
    expected = {
        "HMMA.16816.F32 R0, R4, R8, RZ": ("tensor", 16.0),
        "FFMA R0, R1, R2, R3": ("FMA", 1),
        "IMAD R0, R1, R2, R3": ("FMA", 2),
        "F2FP.F16.F32.PACK_AB R0, R1, R2": ("ALU", 2),
        "MUFU.EX2 R0, R1": ("MUFU", 8),
        "LDSM.16.M88.4 R0, [R4]": ("shared memory", 16.0),
        "LDSM.16.MT88.2 R0, [R4]": ("shared memory", 8.0),
        "LDSM.16.M88 R0, [R4]": ("shared memory", 4.0),
        "LDGSTS.E.BYPASS.128 [R0], [R2.64]": ("L2 to SM", 32.0),
        "UIADD3 UR4, UR4, 0x1, URZ": ("uniform", 1),
    }
    for text, (pipe, cycles) in expected.items():
        (x,) = code_of(text)
        assert (pipe_of(x), busy_cycles(x, L4)) == (pipe, cycles), text


def test_what_is_copied_is_written_to_shared_memory() -> None:
    busy = pipe_cycles(code_of("LDGSTS.E.BYPASS.128 [R0], [R2.64]"), L4, warps=4)
    assert (busy["L2 to SM"], busy["shared memory"]) == (32 * 16 / 64 * 4, 32 * 16 / 128 * 4)


def test_peaks_are_the_data_sheets() -> None:
    for name, tflops in {"l4": 121, "rtx4090": 165.2, "l40s": 362, "a100": 312}.items():
        assert GPUS[name].tensor_tflops == pytest.approx(tflops, rel=0.015), name


HMMAS = ["HMMA.16816.F32 R0, R4, R8, RZ"] * 10


def test_a_pipe_is_shared_by_the_warps() -> None:
    code = code_of(*HMMAS)
    one, two = simulate(code, L4, 1), simulate(code, L4, 2)
    assert 160 <= one < 160 + 60  # ten times 16 cycles, and the last one's latency
    assert two - one == 160


def test_waits_of_one_warp_are_filled_by_another() -> None:
    code = code_of(*["!15 FADD R0, R1, R2"] * 20)
    one, two = simulate(code, L4, 1), simulate(code, L4, 2)
    assert one >= 300
    assert two <= one + 2


def test_a_scoreboard_holds_a_warp_until_the_load_is_there() -> None:
    free = simulate(code_of("W0 LDSM.16.M88.4 R0, [R4]", "MOV R8, R9"), L4, 1)
    held = simulate(code_of("W0 LDSM.16.M88.4 R0, [R4]", "w1 MOV R8, R0"), L4, 1)
    assert held > free


def test_a_group_of_copies_is_waited_for_as_the_operand_says() -> None:
    copies = ("LDGSTS.E.BYPASS.128 [R0], [R2.64]", "W0 LDGDEPBAR") * 2
    all_of_them, but_one, none = (
        simulate(code_of(*copies, *wait, "MOV R0, R1", *["!15 MOV R0, R1"] * 40), L4, 1)
        for wait in (["DEPBAR.LE SB0, 0x0"], ["DEPBAR.LE SB0, 0x1"], [])
    )
    assert all_of_them > but_one > none


def test_the_golden_kernel_keeps_an_l4s_tensor_cores_busy_and_an_h200s_not() -> None:
    tile = sass.kernel_code(golden(), threads=128, rows=128, head_dim=64).tile
    for gpu, low, high in ((L4, 0.9, 1.0), (H200, 0.5, 0.75)):
        cycles = (simulate(tile * 6, gpu, 2) - simulate(tile * 2, gpu, 2)) / 4
        assert low < pipe_cycles(tile, gpu, 8)["tensor"] / cycles < high


# ---- the grid


def test_blocks_go_where_there_is_a_place() -> None:
    def alone(block: tuple[int, int], together: int) -> float:
        return block[0]

    assert last_end([(10, 0)] * 4, 2, 1, alone) == 20
    assert last_end([(10, 0), (2, 0), (2, 0), (2, 0)], 2, 1, alone) == 10
    assert last_end([], 2, 1, alone) == 0


def test_a_block_is_faster_once_its_neighbour_is_gone() -> None:
    def shared(block: tuple[int, int], together: int) -> float:
        return block[0] * together

    # Together to cycle 20, when the short one ends and 10 of the other's 20 are done; the rest alone.
    assert last_end([(10, 0), (20, 0)], 1, 2, shared) == pytest.approx(30)


# ---- data and the command


def test_shapes() -> None:
    assert Shape.parse("4x32/8x128x256x64") == Shape(4, 32, 8, 128, 256, 64)
    assert str(Shape(1, 8, 8, 512, 512, 64)) == "1x8x512x512x64"
    assert Shape.parse("1x8x512x64") is None


def predict(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "predict.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env)


@pytest.mark.parametrize(
    "arguments", [["--gpu", "tpu"], ["--gpu", "l4", "1x8x512"], ["--gpu", "l4", "--save", "1x1x1x1x64"]]
)
def test_wrong_arguments(arguments: list[str]) -> None:
    done = predict(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_kernels_that_are_not_built(tmp_path: Path) -> None:
    done = predict("--gpu", "l4", "1x8x512x512x64", FLASHCORE_BUILD=str(tmp_path))
    assert done.returncode == 2
    assert "make cubin ARCHS=89" in done.stderr


SAVED = sorted((ROOT / "benchmarks" / "predicted").glob("*.json"))


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_saved_predictions_say_what_they_are(path: Path) -> None:
    found = json.loads(path.read_text())
    assert found["suite"] == "predicted"
    assert "a prediction" in found["is"]
    assert all(found[name] for name in ("gpu", "date", "commit", "nvcc"))
    assert found["rates"]["sources"]
    peak = found["rates"]["tensor_tflops"]
    clocks = found["rates"]["clocks"]
    first = next(iter(clocks.values()))
    for row in found["rows"]:
        assert row["us"].keys() == clocks.keys()
        for name, ghz in clocks.items():
            assert 0 < row["tflops"][name] < peak * ghz / first, row["problem"]
    assert table.text(found)


def test_the_readmes_table_of_the_l4() -> None:
    lines = table.lines(ROOT)
    assert "not measured" in lines[0]
    assert any(line.startswith("| 1x8x512x512x64 | full |") for line in lines)
    assert all(len(line) <= 120 for line in lines if not line.startswith("|"))


def test_no_table_without_predictions(tmp_path: Path) -> None:
    assert table.lines(tmp_path) == []


needs_tool = pytest.mark.skipif(
    sass.find_nvdisasm() is None or not (build_folder() / "cubin" / "sm_89" / "manifest.json").is_file(),
    reason="needs nvdisasm and the kernels for sm_89",
)


@needs_tool
@pytest.mark.parametrize("family", ["flash_fwd", "flash_fwd_causal", "flash_fwd_small"])
def test_a_kernel_as_it_is_built(family: str) -> None:
    (spec,) = (s for s in CATALOG if s.stem == f"{family}_f16_d64_sm89")
    model = KernelModel(spec, L4)
    counts = model.tile_counts()
    warps = model.threads // 32
    assert counts["HMMA"] == 4 * model.rows * model.code.keys * 64 // 4096 // warps
    assert counts["MUFU"] >= model.rows * model.code.keys // 32 // warps
    assert model.binds() == "tensor"
    shape = Shape(1, 8, 8, 512, 512, 64)
    full, longer = (model.predict(replace(shape, seqlen_k=n), family == "flash_fwd_causal") for n in (512, 2048))
    assert full["us"]["boost"] < longer["us"]["boost"]


@needs_tool
def test_causal_blocks_see_half_of_the_keys() -> None:
    (spec,) = (s for s in CATALOG if s.stem == "flash_fwd_causal_f16_d64_sm89")
    model = KernelModel(spec, L4)
    blocks = list(model.blocks(Shape(1, 2, 2, 512, 512, 64), True))
    assert blocks == [(8, 2), (8, 2), (6, 2), (6, 2), (4, 2), (4, 2), (2, 2), (2, 2)]  # 128 rows, the last first
    assert list(model.blocks(Shape(1, 1, 1, 200, 100, 64), True))[-1] == (
        1,
        1,
    )  # rows 0 to 99 see nothing, 100 to 127 some


@needs_tool
def test_causal_blocks_come_in_the_plans_groups_of_heads() -> None:
    """K and V of a head are 8 MiB: 4 heads fill two thirds of 48 MiB. The last rows come first."""
    (spec,) = (s for s in CATALOG if s.stem == "flash_fwd_causal_f16_d64_sm89")
    model = KernelModel(spec, replace(L4, multiprocessors=16))
    shape = Shape(1, 8, 8, 32768, 32768, 64)
    row_blocks = shape.seqlen_q // model.rows
    rows = [-(-tiles * model.code.keys // model.rows) - 1 for tiles, _ in model.blocks(shape, True)]
    assert rows == [row for row in reversed(range(row_blocks)) for _ in range(4)] * 2


@needs_tool
def test_the_command_predicts_the_reference_problem() -> None:
    done = predict("--gpu", "l4", "1x8x512x512x64", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "nothing was measured" in found["is"]
    assert 3 < found["rows"][0]["us"]["boost"] < 40
