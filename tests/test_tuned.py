"""The choice among kernels that solve the same problem: waves, tables of GPU models, and the model of the others."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from flashcore_drv import catalog, tuned
from flashcore_drv.dispatch import select
from flashcore_drv.dtypes import F16
from flashcore_drv.emulator.arch import ARCHS
from flashcore_drv.images import build_folder
from flashcore_drv.plan import contiguous
from flashcore_drv.problem import UNBOUNDED, Problem
from flashcore_drv.tuned import GpuModel, WaveCost

TABLES = sorted(p for p in tuned.FOLDER.glob("*.json") if p.stem != "kernels")
WORST, WORST_ELSEWHERE = 1.20, 1.20  # of the time of the best kernel that is built; on problems that were not fitted
DTYPES = {s.dtype.name: s.dtype for s in catalog.CATALOG}


def problem_of(batch, heads, heads_kv, seqlen_q, seqlen_k, head_dim, dtype="f16", causal=False, **options) -> Problem:
    q, kv = contiguous(batch, heads, seqlen_q, head_dim), contiguous(batch, heads_kv, seqlen_k, head_dim)
    return Problem(q, kv, kv, q, DTYPES[dtype], head_dim**-0.5, window_right=0 if causal else UNBOUNDED, **options)


def family_of(problem, arch, gpu, impl="flash_sm80") -> str:
    (spec,) = select(problem, arch, impl, gpu)
    return spec.family


lengths = st.integers(1, 5000)
gpus = st.builds(GpuModel, st.sampled_from(["", "NVIDIA H200", "NVIDIA L4"]), st.integers(1, 200))
head_dims = st.sampled_from(catalog.FLASH_HEAD_DIMS)
problems = st.builds(problem_of, st.integers(1, 8), st.integers(1, 64), st.just(1), lengths, lengths, head_dims)


# ---- waves


@pytest.mark.parametrize(
    ("heads", "seqlen_q", "waves"),
    [(1, 1, (0, 1)), (10, 32, (0, 1)), (11, 32, (0, 2)), (20, 32, (1, 0)), (20, 33, (2, 0)), (21, 33, (2, 1))],
)
def test_a_grid_is_cut_into_waves(heads, seqlen_q, waves) -> None:
    cost = WaveCost(32, 64, blocks_an_sm=2, crowding=1, start=0, start_each=0, key=0, key_each=0)
    assert cost.waves(problem_of(1, heads, 1, seqlen_q, 5, 64), 10) == waves


@pytest.mark.parametrize(
    ("crowding", "heads", "last"), [(1, 24, 1), (2, 24, 1), (3, 24, 2), (8, 24, 2), (8, 9, 1), (3, 9, 1)]
)
def test_the_last_wave_is_crowded_after_a_full_one(crowding, heads, last) -> None:
    cost = WaveCost(32, 64, blocks_an_sm=2, crowding=crowding, start=0, start_each=0, key=0, key_each=0)
    assert cost.waves(problem_of(1, heads, 1, 32, 5, 64), 10) == (heads // 20, last)


def test_the_time_is_the_sum_over_the_waves() -> None:
    cost = WaveCost(32, 64, blocks_an_sm=2, crowding=1, start=7.0, start_each=3.0, key=0.5, key_each=0.25)
    alone, both = 7 + 3 + 128 * 0.75, 7 + 6 + 128 * 1.0  # 100 keys are two tiles
    assert cost.time(problem_of(1, 25, 1, 32, 100, 64), 10) == pytest.approx(both + alone)
    assert cost.time(problem_of(1, 40, 1, 32, 100, 64), 10) == pytest.approx(2 * both)


# ---- which constants


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder with the facts about the built kernels and the table that others fall back to."""
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    for name in ("kernels", tuned.file_name(tuned.FALLBACK)):
        (tmp_path / f"{name}.json").write_text((ROOT / "flashcore_drv" / "tuned" / f"{name}.json").read_text())
    tuned.table.cache_clear()
    tuned.model.cache_clear()
    yield tmp_path
    tuned.table.cache_clear()
    tuned.model.cache_clear()


def write_table(folder, gpu, **keys) -> None:
    """A table where a kernel takes `keys` microseconds a key."""
    kernels = {
        name: vars(WaveCost(64, 64, blocks_an_sm=1, crowding=1, start=0, start_each=0, key=key, key_each=0))
        for name, key in keys.items()
    }
    path = folder / f"{tuned.file_name(gpu)}.json"
    path.write_text(json.dumps({"gpu": gpu, "kernels": kernels}))


@pytest.mark.parametrize(("large", "small", "family"), [(1, 2, "flash_fwd"), (2, 1, "flash_fwd_small")])
def test_the_table_of_the_gpu_decides(tables, large, small, family) -> None:
    write_table(tables, "NVIDIA X-1", flash_fwd_d64=large, flash_fwd_small_d64=small)
    assert family_of(problem_of(1, 8, 8, 512, 512, 64), 89, GpuModel("NVIDIA X-1", 10)) == family


@pytest.mark.parametrize("name", ["", "NVIDIA X-2", "nvidia x 1", "../kernels", "kernels"])
def test_another_gpu_does_not_get_it(tables, name) -> None:
    write_table(tables, "NVIDIA X-1", flash_fwd_d64=1, flash_fwd_small_d64=0)
    many = problem_of(8, 64, 64, 4096, 4096, 64)
    assert family_of(many, 89, GpuModel("NVIDIA X-1", 10)) == "flash_fwd_small"
    assert family_of(many, 89, GpuModel(name, 10)) == "flash_fwd"


def test_a_table_that_lacks_a_kernel_is_not_used(tables) -> None:
    write_table(tables, "NVIDIA X-1", flash_fwd_small_d64=0)
    assert family_of(problem_of(8, 64, 64, 4096, 4096, 64), 89, GpuModel("NVIDIA X-1", 10)) == "flash_fwd"
    assert family_of(problem_of(1, 1, 1, 512, 512, 64), 89, GpuModel("NVIDIA X-1", 10)) == "flash_fwd_small"


def test_a_kernel_that_was_never_measured_is_not_chosen(tables) -> None:
    write_table(tables, tuned.FALLBACK, flash_fwd_small_d64=0)
    assert family_of(problem_of(1, 1, 1, 512, 512, 64), 89, GpuModel("", 10)) == "flash_fwd"


@given(problem=problems, arch=st.sampled_from([80, 86, 89, 90, 120]), gpu=gpus)
def test_the_choice_is_an_alternative_and_always_the_same(problem, arch, gpu) -> None:
    found = family_of(problem, arch, gpu)
    assert found in tuned.alternatives("flash_fwd", problem.head_dim)
    assert family_of(problem, arch, GpuModel(gpu.name, gpu.multiprocessors)) == found


@given(problem=problems, arch=st.sampled_from([80, 86, 89, 90, 120]), gpu=gpus)
def test_nothing_about_the_gpu_changes_a_batch_invariant_choice(problem, arch, gpu) -> None:
    fixed = Problem(problem.q, problem.k, problem.v, problem.o, F16, 0.125, batch_invariant=True)
    assert family_of(fixed, arch, gpu) == "flash_fwd"


# ---- Hopper's own kernels


@pytest.mark.parametrize(
    ("fastest", "own"),
    [
        ("flash_fwd_tma", "flash_fwd_tma"),
        ("flash_fwd_tma_short", "flash_fwd_tma_short"),
        ("flash_fwd_tma_few", "flash_fwd_tma_few"),
        ("flash_fwd_small", "flash_fwd_tma_few"),
    ],
)
def test_the_small_kernel_is_taken_where_it_is_faster(tables, fastest, own) -> None:
    costs = {f"{f}_d64": 9 for f in tuned.alternatives("flash_fwd_tma", 64)} | {"flash_fwd_tma_few_d64": 2}
    write_table(tables, "NVIDIA X-1", **costs | {f"{fastest}_d64": 1})
    problem, gpu = problem_of(1, 8, 8, 512, 512, 64), GpuModel("NVIDIA X-1", 10)
    assert family_of(problem, 90, gpu, "flash") == fastest
    assert family_of(problem, 90, gpu, "flash_sm90") == own
    narrow = problem_of(1, 8, 8, 512, 512, 56)  # which it does not take
    assert family_of(narrow, 90, gpu, "flash") != "flash_fwd_small"


def test_only_hopper_takes_constants_of_its_own_kernels_from_another_gpu(tables) -> None:
    write_table(tables, tuned.FALLBACK, flash_fwd_tma_d64=2, flash_fwd_small_d64=1)
    assert set(tuned.model(90)) == {"flash_fwd_tma_d64", "flash_fwd_small_d64"}
    assert tuned.model(90)["flash_fwd_tma_d64"].blocks_an_sm == 1
    assert [set(tuned.model(arch)) for arch in (80, 89, 120)] == [{"flash_fwd_small_d64"}] * 3


def test_large_head_dims_have_no_alternative() -> None:
    assert tuned.alternatives("flash_fwd", 256) == ("flash_fwd",)
    assert tuned.contested("flash_fwd") == catalog.FLASH_SMALL_HEAD_DIMS
    assert tuned.contested("flash_fwd_tma") == (64, 96, 128)
    assert tuned.contested("flash_fwd_tma_causal") == (64, 128)
    assert tuned.alternatives("flash_fwd_causal", 64) == ("flash_fwd_causal",)
    assert tuned.alternatives("flash_fwd", 64) == ("flash_fwd", "flash_fwd_small")


# ---- the model of GPUs without a table


def test_shared_memory_of_an_sm_is_that_of_the_architecture() -> None:
    for arch in ARCHS.values():
        number = 10 * arch.compute_capability[0] + arch.compute_capability[1]
        assert tuned.SHARED_KB.get(number, tuned.SHARED_KB_ELSEWHERE) << 10 == arch.shared_per_multiprocessor


@pytest.mark.parametrize(
    ("arch", "registers", "shared_kb", "blocks"),
    [(89, 128, 48, 2), (89, 128, 49, 2), (89, 128, 50, 1), (80, 128, 49, 3), (90, 128, 49, 4), (90, 255, 16, 2),
     (90, 168, 16, 3), (90, 169, 16, 2), (89, 255, 99, 1)],
)  # fmt: skip
def test_blocks_that_an_sm_holds(arch, registers, shared_kb, blocks) -> None:
    found = tuned.blocks_an_sm(arch, threads=128, registers=registers, shared_bytes=shared_kb << 10)
    assert found == blocks


def kernels(arch) -> set[str]:
    """The names of all that are chosen among on a GPU of compute capability `arch`, if they were measured there."""
    there = {s.family for s in catalog.kernels_of(arch)}
    return {
        f"{f}_d{d}"
        for family in tuned.ALTERNATIVES
        for d in tuned.contested(family)
        for f in tuned.alternatives(family, d)
        if f in there
    }


def measured_on(gpu_name) -> set[str]:
    return set(tuned.table(gpu_name) or {})


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 120])
def test_the_model_knows_every_kernel_that_was_measured(arch) -> None:
    """And every one that all GPUs have was."""
    assert set(tuned.model(arch)) == kernels(arch) & measured_on(tuned.FALLBACK)
    assert set(tuned.model(arch)) >= kernels(89)


def test_other_gpus_hold_other_numbers_of_blocks() -> None:
    measured = tuned.table(tuned.FALLBACK)
    assert tuned.model(90) == measured
    one = tuned.model(89)["flash_fwd_small_d64"]  # 68 KB of 100
    assert (one.blocks_an_sm, measured["flash_fwd_small_d64"].blocks_an_sm) == (1, 2)
    assert one == replace(measured["flash_fwd_small_d64"], blocks_an_sm=1)


def test_the_facts_are_those_of_the_built_kernels() -> None:
    folder = build_folder() / "cubin" / "sm_89"
    if not (folder / "manifest.json").is_file():
        pytest.skip("nothing is built: make cubin")
    built = {k["stem"]: k for k in json.loads((folder / "manifest.json").read_text())["kernels"]}
    for name, facts in json.loads((tuned.FOLDER / "kernels.json").read_text()).items():
        family, size = name.rsplit("_", 1)
        found = built[f"{family}_f16_{size}_sm89"]
        said = facts["threads"], facts["registers"], facts["shared_bytes"]
        is_so = found["threads"], found["registers"], found["shared_dynamic_bytes"]
        assert said == is_so, f"{name}: python scripts/tune.py --facts"


# ---- what was measured


def table_of(path):
    return json.loads(path.read_text())


def family_among(us, problem, arch, gpu) -> str:
    """What dispatch takes of the kernels that were timed, all for any GPU or all for Hopper."""
    return family_of(problem, arch, gpu, "flash" if any("tma" in f for f in us) else "flash_sm80")


MEASURED = [
    pytest.param(path, rows, id=f"{path.stem}-{part}")
    for path in TABLES
    for part, rows in table_of(path)["measured"].items()
]


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_a_table_says_where_it_is_from(path) -> None:
    table = table_of(path)
    assert path.stem == tuned.file_name(table["gpu"]) == tuned.file_name(table["conditions"]["gpu"])
    for name in ("nvcc", "commit", "date", "timing", "inputs", "l2", "multiprocessors", "rounds"):
        assert table["conditions"][name], name
    assert any(name.startswith("driver_version") for name in table["conditions"])
    choice, hold_out = ({tuple(r["problem"]) for r in table["measured"][part]} for part in ("choice", "hold_out"))
    assert choice
    assert hold_out
    assert not choice & hold_out
    assert set(table["kernels"]) == set(tuned.table(table["gpu"]))
    assert kernels(89) <= set(table["kernels"]) <= kernels(table["arch"])


@pytest.mark.parametrize("which", ["table", "model"])
@pytest.mark.parametrize(("path", "rows"), MEASURED)
def test_no_choice_takes_much_longer_than_the_best_kernel(path, rows, which) -> None:
    """A fifth at most, and on average nothing that could be measured."""
    table = table_of(path)
    worst = WORST if rows == table["measured"]["choice"] else WORST_ELSEWHERE
    gpu = GpuModel(table["gpu"] if which == "table" else "", table["conditions"]["multiprocessors"])
    late, ratios = [], []
    for row in rows:
        us = row["us"]
        chosen = us[family_among(us, problem_of(*row["problem"]), table["arch"], gpu)]
        ratios.append(chosen / min(us.values()))
        if ratios[-1] > worst:
            late.append((row["problem"], us))
    assert late == []
    assert math.prod(ratios) < 1.005 ** len(ratios)


@pytest.mark.parametrize(("path", "rows"), MEASURED)
def test_what_the_table_says_of_its_choice_is_so(path, rows) -> None:
    table = table_of(path)
    part = next(name for name, x in table["measured"].items() if x == rows)
    gpus = {"table": GpuModel(table["gpu"], table["conditions"]["multiprocessors"])}
    gpus["model"] = GpuModel("", table["conditions"]["multiprocessors"])
    for way, gpu in gpus.items():
        ratios = []
        for row in rows:
            family = family_among(row["us"], problem_of(*row["problem"]), table["arch"], gpu)
            ratios.append(row["us"][family] / min(row["us"].values()))
        said = table["time_beside_the_best_kernel"][part][way]
        assert said["worst"] == pytest.approx(max(ratios), abs=1e-4)
        assert said["mean"] == pytest.approx(math.exp(sum(map(math.log, ratios)) / len(ratios)), abs=1e-4)


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_a_table_is_of_kernels_with_these_tiles(path) -> None:
    facts = json.loads((tuned.FOLDER / "kernels.json").read_text())
    tiles = {name: (k["rows"], k["keys"]) for name, k in table_of(path)["kernels"].items() if name in kernels(89)}
    assert tiles == {name: (k["rows"], k["keys"]) for name, k in facts.items()}, "tiles changed: run scripts/tune.py"
