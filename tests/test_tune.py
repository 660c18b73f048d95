"""scripts/tune.py without a GPU: enumeration and refusals, what is built, checks before times, fits, what it prints."""

import json
import re
import shutil
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from support import ROOT, run_python

from flashcore_drv import catalog, tuned
from flashcore_drv.catalog import CATALOG
from flashcore_drv.images import build_folder
from flashcore_drv.runtime import Device, is_emulated

sys.path.insert(0, str(ROOT / "scripts"))

import cubins
import tilings
import tune
from tilings import Cell, Enumeration, Tiling
from tune import Shape

COMPILER = cubins.find_nvcc()
needs_nvcc = pytest.mark.skipif(COMPILER is None, reason="needs nvcc")
pytestmark = pytest.mark.xdist_group("tune")
SMALL = Tiling("pipelined", 2, 1, 2, 64, 32, 2, True, 1, False)
LARGE = Tiling("straight", 4, 2, 1, 64, 32, 2, True, 2, True)
PAIRED = Tiling("paired", 4, 1, 1, 32, 32, 2, True, 2, False)
FULL_64, SMALL_64 = Cell("flash_fwd", 64), Cell("flash_fwd_small", 64)


# ---- what is built, and what is said of it


@pytest.fixture(scope="module")
def built():
    if COMPILER is None:
        pytest.skip("needs nvcc")
    return tilings.built_tilings(COMPILER, 89)


@pytest.mark.parametrize("ptx_arch", catalog.PTX_ARCHS)
@needs_nvcc
def test_every_cell_has_a_tiling_that_nothing_speaks_against(ptx_arch) -> None:
    built = tilings.built_tilings(COMPILER, ptx_arch)
    assert set(built) == set(tilings.cells())
    assert {str(c) for c in built} == {f"{s.family}_{s.size}" for s in CATALOG if s.family in catalog.FLASH_VARIANTS}
    assert {cell: found for cell, t in built.items() if (found := tilings.reasons(t, cell))} == {}


def test_a_tiling_is_what_the_kernel_says_of_itself(built) -> None:
    if not (build_folder() / "cubin" / "sm_89" / "manifest.json").is_file():
        pytest.skip("nothing is built: make cubin")
    for cell, t in built.items():
        spec = tune.built_kernel(cell.family, Shape(1, 1, 1, 1, 1, cell.head_dim), 89)
        info = tune.info_of(spec)
        said = t.threads, t.block_q, t.shared_bytes(cell.head_dim)
        assert said == (info["threads"], info["tile_rows"], info["shared_bytes"]), cell
        assert t.registers_at_least(cell.head_dim) <= cubins.resources(89, spec)["registers"], cell


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bool split_loops;", "bool split_loops; int more;", "differ"),
        ("int stages;", "int buffers;", "differ"),
        ("kStraight,  ", "kStraight, kOther,  ", None),
        ("straight = Schedule::kStraight", "straight = Schedule::kOther", "does not know"),
    ],
)
@needs_nvcc
def test_members_that_differ_from_the_header_are_refused(tmp_path, old, new, message) -> None:
    shutil.copytree(ROOT / "cuda", tmp_path / "cuda")
    path = tmp_path / "cuda" / "flash_fwd" / "traits.cuh"
    text = path.read_text()
    assert old in text
    if "kOther" in new:
        text = text.replace("kStraight,  ", "kStraight, kOther,  ")
    path.write_text(text.replace(old, new))
    if message is None:
        assert tilings.built_tilings(COMPILER, 89, (FULL_64,), tmp_path / "cuda") == {FULL_64: LARGE}
    else:
        with pytest.raises(RuntimeError, match=message):
            tilings.built_tilings(COMPILER, 89, (FULL_64,), tmp_path / "cuda")


# ---- enumeration


@pytest.mark.parametrize(
    ("tiling", "cell", "reason"),
    [
        (replace(LARGE, slice=48), FULL_64, "slices of 48 do not divide 64 keys"),
        (replace(LARGE, keys=32, slice=64), FULL_64, "slices of 64 do not divide 32 keys"),
        (LARGE, Cell("flash_fwd", 256), "shared memory: 196608 bytes of 101376"),
        (replace(LARGE, key_warps=2, keys=32), FULL_64, "registers: at least 140 of 128"),
        (replace(LARGE, m_tiles=4), FULL_64, "registers: at least 340 of 255"),
        (replace(LARGE, blocks_an_sm=3), FULL_64, "registers: at least 172 of 168"),
        (replace(LARGE, key_warps=2, keys=16, slice=16, blocks_an_sm=1), FULL_64, "straight: one warp along the keys"),
        (replace(SMALL, q_in_registers=False), SMALL_64,
         "pipelined: the sums of several warps along the keys take the place of Q"),
        (replace(SMALL, key_warps=4, keys=16, slice=16, m_tiles=2), SMALL_64,
         "pipelined: the parts of O do not fit the place of K"),
        (PAIRED, Cell("flash_fwd", 256), None),
        (replace(PAIRED, stages=1), Cell("flash_fwd", 256),
         "paired: one tile of rows a warp, one warp along the keys, 2 stages, Q in registers, one loop"),
        (replace(PAIRED, row_warps=1), Cell("flash_fwd", 256), "paired: an even number of warps, and all keys at once"),
        (PAIRED, Cell("flash_fwd_general", 256), "paired: for full and causal, and whole spans of 64 columns"),
        (replace(SMALL, stages=1), SMALL_64, "pipelined: needs 2 stages"),
        (replace(SMALL, split_loops=True), SMALL_64, "pipelined: has one loop"),
        (SMALL, Cell("flash_fwd_causal", 64), "pipelined: has no diagonal"),
        (SMALL, Cell("flash_fwd_general", 64), "pipelined: has no diagonal"),
        (replace(SMALL, row_warps=1, key_warps=1), SMALL_64,
         "32 threads copy 4 rows at a time, which 8 does not divide"),
        (replace(SMALL, keys=48, slice=16), SMALL_64, None),
        (replace(LARGE, row_warps=8, m_tiles=1, keys=48, slice=16, blocks_an_sm=1), FULL_64,
         "256 threads do not share a copy of 48 rows"),
        (replace(LARGE, row_warps=8, m_tiles=1, keys=96, blocks_an_sm=1), FULL_64, None),
        (replace(LARGE, row_warps=8, m_tiles=1, keys=96, blocks_an_sm=1), Cell("flash_fwd", 32),
         "256 threads do not share a copy of 96 rows"),
        (replace(SMALL, key_warps=8, keys=32), Cell("flash_fwd", 32), "8 warps do not share 4 tiles of columns"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_with_the_reason(tiling, cell, reason) -> None:
    assert tilings.reasons(tiling, cell)[:1] == ([reason] if reason else [])


def test_the_memory_of_the_exchange_counts() -> None:
    assert LARGE.shared_bytes(64) == 2 * 64 * (128 + 2 * 2 * 64)
    assert PAIRED.shared_bytes(256) == 4 * 32 * 256 * 2 + 2 * 4 * (2 * 512 + 64 + 4)


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize(
    ("cell", "tiling"), [(FULL_64, LARGE), (SMALL_64, SMALL), (Cell("flash_fwd_causal", 96), LARGE)]
)
def test_every_combination_is_tried_refused_or_elsewhere(cell, tiling, most) -> None:
    e = Enumeration.of(cell, tiling, most, everywhere=True)
    combinations = np.prod([len(tilings.CHOICES[f.name]) for f in fields(Tiling)])
    assert len(e.tried) + len(e.refused) + sum(e.elsewhere.values()) == combinations
    assert not set(e.tried) & set(e.refused)
    assert e.tried[0] == tiling
    assert all(tilings.changes(t, tiling) <= most for t in (*e.tried, *e.refused))
    assert all(e.refused.values())
    near = Enumeration.of(cell, tiling, most)
    assert (near.tried, near.refused, near.elsewhere) == (e.tried, e.refused, {})


def test_a_slice_that_follows_its_keys_is_no_change_of_its_own() -> None:
    assert tilings.changes(LARGE, LARGE) == 0
    assert tilings.changes(replace(LARGE, keys=96), LARGE) == 1
    assert tilings.changes(replace(LARGE, keys=48, slice=16), LARGE) == 1
    assert tilings.changes(replace(LARGE, keys=48, slice=48), LARGE) == 2
    assert tilings.changes(replace(LARGE, slice=16), LARGE) == 1
    assert tilings.changes(replace(LARGE, stages=1, split_loops=False), LARGE) == 2


def test_names_are_words_of_a_stem_and_unique() -> None:
    e = Enumeration.of(FULL_64, LARGE, 2)
    names = [t.name for t in (*e.tried, *e.refused)]
    assert len(set(names)) == len(names)
    assert LARGE.name == "st4x2x1k64s32t2q1b2l1"
    assert all(re.fullmatch(r"[a-z][a-z0-9]*", n) for n in names)


# ---- building


@pytest.fixture(scope="module")
def toolkit():
    if COMPILER is None:
        pytest.skip("needs nvcc")
    cubins.write_if_changed(cubins.BUILD / "gen" / "abi_check.h", tune.fc.abi.check_header())
    return COMPILER, cubins.toolkit_program(COMPILER, "ptxas")


def instructions(ptx: str, stem: str) -> list[str]:
    """PTX without line tables and the kernel's name."""
    lines = (line.strip().replace(stem, "") for line in ptx.split("\t.section")[0].splitlines())
    return [x for x in lines if x and not x.startswith((".loc", ".file", "//"))]


def test_the_tiling_of_the_table_makes_the_kernel_of_the_catalog(built, toolkit) -> None:
    made = tune.build(tune.candidate(SMALL_64, built[SMALL_64], 89), 89, *toolkit)
    assert made.reason is None
    spec = tune.built_kernel("flash_fwd_small", Shape(1, 1, 1, 1, 1, 64), 89)
    path = build_folder() / "ptx" / f"{spec.stem}.ptx"
    if not path.is_file():
        pytest.skip("nothing is built: make cubin")
    candidate = (tune.FOLDER / "ptx" / f"{made.spec.stem}.ptx").read_text()
    assert made.spec.stem == f"flash_fwd_small_f16_d64_{built[SMALL_64].name}_sm89"
    assert instructions(candidate, made.spec.stem) == instructions(path.read_text(), spec.stem)
    resources = cubins.resources(89, spec)
    assert (made.registers, made.blocks_an_sm) == (resources["registers"], resources["blocks_per_sm"])


@pytest.mark.parametrize(
    ("tiling", "reason"),
    [
        (replace(LARGE, schedule="pipelined"), r"spills \d+ bytes"),
        (replace(SMALL, row_warps=1, key_warps=1), 'does not compile: .*static assertion failed.*8 n apart"'),
    ],
)
def test_what_the_compiler_finds_is_a_reason(toolkit, tiling, reason) -> None:
    made = tune.build(tune.candidate(FULL_64, tiling, 89), 89, *toolkit)
    assert re.fullmatch(reason, made.reason)


def test_a_kernel_that_says_other_things_of_itself_stops_the_sweep(toolkit, monkeypatch) -> None:
    monkeypatch.setattr(Tiling, "shared_bytes", lambda self, head_dim: 1)
    with pytest.raises(RuntimeError, match=r"tilings\.py says .*'shared_bytes': 1"):
        tune.build(tune.candidate(SMALL_64, SMALL, 89), 89, *toolkit)


# ---- checked, then timed


def fake_timer(us, replays=False):
    """Times by the name of the candidate; remembers what it was asked for."""

    def timer(candidates, stream, repeat, rounds):
        timer.asked.append((list(candidates), repeat, rounds))
        for replay in candidates.values() if replays else ():
            replay(stream)
            stream.synchronize()
        return {name: [us[name] + i for i in range(-(rounds // 2), rounds // 2 + 1)] for name in candidates}

    timer.asked = []
    return timer


@pytest.fixture(scope="module")
def bench():
    if not is_emulated():
        pytest.skip("small inputs are for the emulator")
    if not (build_folder() / "ptx").is_dir():
        pytest.skip("nothing is built: make cubin")
    timer = fake_timer({"flash_fwd": 9.0, "flash_fwd_small": 7.0}, replays=True)
    return tune.Bench(Device.current(), 3, 1 << 16, timer, replay_us=8)


ARCH = 89


@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("flash_fwd", Shape(2, 4, 2, 70, 33, 64, "bf16")),
        ("flash_fwd_small", Shape(1, 3, 1, 33, 140, 32)),
        ("flash_fwd_causal", Shape(1, 2, 2, 65, 90, 64, "f16", True)),
        ("flash_fwd_general", Shape(1, 2, 1, 40, 40, 96, "bf16", True)),
        ("flash_fwd_window", Shape(1, 2, 1, 40, 70, 64)),
        ("flash_fwd_scored", Shape(1, 1, 1, 20, 70, 32)),
    ],
)
def test_right_kernels_pass_the_check(bench, family, shape) -> None:
    bench.check(tune.built_kernel(family, shape, ARCH), shape)


@pytest.mark.parametrize(
    ("family", "made", "asked"),
    [
        ("flash_fwd", {}, {"causal": True}),
        ("flash_fwd", {}, {"dtype": "bf16"}),
        ("flash_fwd", {"head_dim": 32}, {}),
    ],
)
def test_a_wrong_kernel_is_not_timed(bench, family, made, asked) -> None:
    shape = Shape(1, 2, 2, 64, 64, 64)
    wrong = tune.built_kernel(family, replace(shape, **made), ARCH)
    before = len(bench.timer.asked)
    with pytest.raises(tune.Wrong, match=f"{wrong.stem} is wrong on"):
        bench.times({"it": wrong}, replace(shape, **asked))
    assert len(bench.timer.asked) == before


def test_kernels_are_timed_together_and_the_median_counts(bench) -> None:
    shape = Shape(1, 1, 1, 16, 30, 64)
    kernels = {f: tune.built_kernel(f, shape, ARCH) for f in tuned.alternatives("flash_fwd", 64)}
    assert bench.times(kernels, shape) == {"flash_fwd": 9.0, "flash_fwd_small": 7.0}
    assert bench.timer.asked[-1] == (["flash_fwd", "flash_fwd_small"], 2, 3)


def test_a_problem_larger_than_the_inputs_is_refused(bench) -> None:
    shape = Shape(1, 2, 1, 1024, 50, 64)
    with pytest.raises(ValueError, match="131072 elements; allowed: up to 65536"):
        bench.check(tune.built_kernel("flash_fwd", shape, ARCH), shape)


def test_the_whole_sweep(built, monkeypatch, tmp_path, capsys) -> None:
    """Both sweeps as the program runs them, with two problems, one cell and invented times."""
    if not is_emulated():
        pytest.skip("on the emulator alone")
    if not (build_folder() / "cubin" / "sm_89").is_dir():
        pytest.skip("nothing is built: make cubin")
    two = Shape(1, 2, 2, 40, 40, 64), Shape(1, 1, 1, 16, 70, 64)
    f16, both = (tune.Problems(two, (Shape(1, 2, 1, 24, 90, 64, dtype),)) for dtype in ("f16", "bf16"))
    other = replace(built[SMALL_64], row_warps=4)
    us = {"flash_fwd": 9.0, "flash_fwd_small": 7.0, built[SMALL_64].name: 5.0, other.name: 4.0}
    monkeypatch.setattr(tune, "is_emulated", lambda: False)
    monkeypatch.setattr(tune, "choice_problems", lambda family: both)
    monkeypatch.setattr(tune, "tile_problems", lambda cell: f16)
    bench_of = tune.Bench
    monkeypatch.setattr(tune, "Bench", lambda device, rounds: bench_of(device, rounds, 1 << 16, fake_timer(us), 8))
    monkeypatch.setattr(Enumeration, "of", lambda cell, built, *_: Enumeration(cell, built, (built, other), {}, {}))
    arguments = ["tune.py", "--cells", "^flash_fwd_small_d64$", "--table", tmp_path, "--json", tmp_path / "tiles.json"]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--commit", "abc", "--date", "2026-01-02", "--jobs", "2"])
    tune.main()
    printed = capsys.readouterr().out
    table = json.loads(next(p for p in tmp_path.iterdir() if p.stem.startswith("emulated")).read_text())
    assert table["gpu"] == Device.current().name
    assert [r["us"] for r in table["measured"]["choice"]] == [{"flash_fwd": 9.0, "flash_fwd_small": 7.0}] * 2
    assert table["time_beside_the_best_kernel"]["hold_out"]["table"]["worst"] == 1
    assert table["time_beside_the_best_kernel"]["choice"]["always flash_fwd"]["mean"] == pytest.approx(9 / 7, abs=1e-4)
    assert (table["conditions"]["commit"], table["conditions"]["date"]) == ("abc", "2026-01-02")
    (cell,) = json.loads((tmp_path / "tiles.json").read_text())["cells"]
    assert [(c["tiling"], c["choice"], c["hold_out"], c["built"]) for c in cell["candidates"]] == [
        (other.name, 0.8, 0.8, False),
        (built[SMALL_64].name, 1.0, 1.0, True),
    ]
    assert re.search(rf"{other.name} +0\.800 +0\.800", printed)


def test_a_wrong_candidate_is_noted_and_a_wrong_built_kernel_stops(bench, monkeypatch) -> None:
    other = replace(SMALL, row_warps=4)
    problems = tune.Problems((Shape(1, 1, 1, 8, 8, 64),), (Shape(1, 1, 1, 9, 9, 64),))

    def check(spec, shape):
        if bad in spec.stem:
            raise tune.Wrong(f"{spec.stem} is wrong")

    monkeypatch.setattr(bench, "check", check)
    monkeypatch.setattr(bench, "times", lambda kernels, shape: dict.fromkeys(kernels, 1.0))
    tried = [tune.candidate(SMALL_64, t, ARCH) for t in (SMALL, other)]
    bad = other.name
    tune.sweep_cell(bench, tried, SMALL, problems)
    assert tried[1].reason.endswith("is wrong")
    assert tried[1].choice is None
    assert tried[0].hold_out == {"1x1/1x9x9x64 f16": 1.0}
    assert [c["tiling"] for c in tune.ranked(tried, SMALL)] == [SMALL.name, other.name]
    bad = SMALL.name
    with pytest.raises(tune.Wrong):
        tune.sweep_cell(bench, tried, SMALL, problems)


# ---- problems


@pytest.mark.parametrize("family", tuned.ALTERNATIVES)
def test_the_hold_out_of_the_choice_shares_no_problem_with_it(family) -> None:
    problems = tune.choice_problems(family)
    assert not set(problems.choice) & set(problems.hold_out)
    assert len(set(problems.choice)) == len(problems.choice)
    assert {s.seqlen_k for s in problems.choice}.isdisjoint(s.seqlen_k for s in problems.hold_out)
    for part in (problems.choice, problems.hold_out):
        assert {s.head_dim for s in part} == set(tuned.contested(family))
    assert {s.dtype for s in problems.hold_out} == {"f16", "bf16"}
    assert any(s.heads != s.heads_kv for s in problems.hold_out)


def test_problems_fit_the_inputs() -> None:
    parts = [tune.choice_problems(f) for f in tuned.ALTERNATIVES] + [tune.tile_problems(c) for c in tilings.cells()]
    for problems in parts:
        for shape in (*problems.choice, *problems.hold_out):
            p = shape.problem
            assert max(np.prod(p.q.shape), np.prod(p.k.shape)) <= tune.ELEMENTS, shape
            assert p.causal == shape.causal
            assert shape.heads % shape.heads_kv == 0


# ---- fit and evaluation

FACTS = {
    f"{family}_d{d}": {"rows": rows, "keys": 64, "blocks_an_sm": blocks}
    for family, rows in (("flash_fwd", 128), ("flash_fwd_small", 32))
    for d, blocks in ((32, 3), (64, 2))
}


def synthetic(shapes, costs, launch, sms):
    """Rows that obey the waves exactly."""
    families = {n.rsplit("_", 1)[0] for n in costs}
    return [
        {
            "problem": list(tune.asdict(s).values()),
            "us": {f: launch + costs[f"{f}_d{s.head_dim}"].time(s.problem, sms) for f in families},
        }
        for s in shapes
    ]


@pytest.fixture(scope="module")
def true_costs():
    rng = np.random.default_rng(1)
    names = "start", "start_each", "key", "key_each"
    crowdings = dict(zip(FACTS, (1, 8, 3, 2)))
    return {
        name: tuned.WaveCost(**facts, crowding=crowdings[name], **dict(zip(names, rng.uniform(0.1, 1, 4))))
        for name, facts in FACTS.items()
    }


@pytest.mark.parametrize("disturbed", [0, 0.05])
def test_constants_are_found_again(true_costs, disturbed) -> None:
    """Also where a few problems take twice as long as waves say."""
    shapes = [s for s in tune.choice_problems("flash_fwd").choice if s.head_dim <= 64]
    rows = synthetic(shapes, true_costs, 1.5, 132)
    rng = np.random.default_rng(2)
    for row in rows:
        if rng.uniform() < disturbed:
            row["us"] = {f: 2 * us for f, us in row["us"].items()}
    launch, costs = tune.fit(rows, FACTS, 132)
    assert launch == pytest.approx(1.5, rel=0.05)
    for row in synthetic(shapes, true_costs, 1.5, 132):
        shape = tune.shape_of(row)
        for family, us in row["us"].items():
            assert launch + costs[f"{family}_d{shape.head_dim}"].time(shape.problem, 132) == pytest.approx(us, rel=0.02)
    if not disturbed:
        assert {n: c.crowding for n, c in costs.items()} == {n: c.crowding for n, c in true_costs.items()}


def test_no_constant_is_negative() -> None:
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert tune.not_negative(matrix, np.array([1.0, 3.0, 5.0])) == pytest.approx([0, 11 * 2 / 14], abs=0.1)
    assert tune.not_negative(matrix, np.array([2.0, 3.0, 4.0])) == pytest.approx([1, 1])


def test_choices_are_compared_with_the_best() -> None:
    shapes = [Shape(1, 8, 8, 128, 128, 64), Shape(1, 64, 64, 512, 512, 64)]
    rows = [
        {"problem": list(tune.asdict(s).values()), "us": {"flash_fwd": a, "flash_fwd_small": b}}
        for s, a, b in zip(shapes, (4.0, 5.0), (2.0, 10.0))
    ]
    zero = {"start": 0, "start_each": 0, "key_each": 0}
    costs = {
        "flash_fwd_d64": tuned.WaveCost(128, 64, 1, 1, key=3, **zero),
        "flash_fwd_small_d64": tuned.WaveCost(32, 64, 1, 1, key=1, **zero),
    }
    found = tune.evaluate(rows, {"it": costs}, 132)
    assert found["it"] == {"mean": 1, "worst": 1, "where": tune.label(shapes[0])}
    assert found["always flash_fwd"]["worst"] == 2
    assert found["always flash_fwd"]["mean"] == pytest.approx(2**0.5, abs=1e-4)
    assert found["always flash_fwd_small"]["where"] == tune.label(shapes[1])


def test_a_kernel_is_compared_where_it_was_timed() -> None:
    """Problems of different kinds have different kernels."""
    timed = [{"flash_fwd": 4.0, "flash_fwd_small": 2.0}, {"flash_fwd_tma": 3.0, "flash_fwd_small": 9.0}]
    problem = list(tune.asdict(Shape(1, 8, 8, 128, 128, 64)).values())
    found = tune.evaluate([{"problem": problem, "us": us} for us in timed], {}, 132)
    assert {way: (r["mean"], r["worst"]) for way, r in found.items()} == {
        "always flash_fwd": (2, 2),
        "always flash_fwd_small": (pytest.approx(3**0.5, abs=1e-4), 3),
        "always flash_fwd_tma": (1, 1),
    }


def test_tables_have_a_line_a_problem(tmp_path) -> None:
    rows = [{"problem": [1, 2, 2, 3, 4, 64, "f16", False], "us": {"flash_fwd": 1.5}}] * 2
    found = {"gpu": "X", "kernels": {"a": {"rows": 1}}, "measured": {"choice": rows, "hold_out": []}}
    tune.write(tmp_path / "t.json", found)
    text = (tmp_path / "t.json").read_text()
    assert json.loads(text) == found
    assert len([line for line in text.splitlines() if "problem" in line and "us" in line]) == 2


# ---- the program


@needs_nvcc
def test_the_list_needs_no_gpu_and_gives_reasons() -> None:
    ran = run_python(
        "scripts/tune.py", "--list", "--all", "--cells", "^flash_fwd_causal_d128$", FLASHCORE_DRIVER="emulator"
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(
        r"^flash_fwd_causal_d128: built st4x2x1k\w+; \d+ may be tried, \d+ near it are refused", ran.stdout, re.M
    )
    assert "pipelined: has no diagonal" in ran.stdout
    assert "further away:" in ran.stdout
    assert "  built" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "tuning needs a GPU"), (("--cells", "d7$"), "names none of flash_fwd_d32")],
)
@needs_nvcc
def test_what_cannot_be_swept_is_said(arguments, message) -> None:
    ran = run_python("scripts/tune.py", *arguments, FLASHCORE_DRIVER="emulator")
    assert ran.returncode == 1
    assert message in ran.stderr


@pytest.mark.parametrize(
    "path", sorted(p for p in tuned.FOLDER.glob("*.json") if p.stem != "kernels"), ids=lambda p: p.stem
)
def test_a_table_follows_from_its_own_times(path, tmp_path) -> None:
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    ran = run_python("scripts/tune.py", "--refit", copy)
    assert ran.returncode == 0, ran.stderr
    ours, again = (json.loads(p.read_text()) for p in (path, copy))
    for name, constants in ours.pop("kernels").items():
        assert again["kernels"][name] == pytest.approx(constants, rel=1e-2, abs=1e-6), name
    again.pop("kernels")
    assert again == ours | {"launch_us": pytest.approx(ours["launch_us"], rel=1e-2)}
