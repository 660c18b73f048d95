"""scripts/report.py: the README's blocks and the plots are what the results say, and what is stale is named."""

import copy
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from benchmark import results  # noqa: E402
from report import expected_blocks  # noqa: E402
from reporting import bars, figures, markers, tables  # noqa: E402
from reporting.data import Suite, newest, others  # noqa: E402

REPORT = ROOT / "scripts" / "report.py"
README = (
    "# Title\n\n"
    + "\n".join(f"<!-- report:{name} -->\n<!-- /report:{name} -->\n" for name in (*tables.BLOCKS, "l4"))
    + "\nThe end.\n"
)
BARS = "Bars:\n\n<!-- report:bars -->\n<!-- /report:bars -->\n"
STATE = {"sm_mhz": 1980.0, "memory_mhz": 3201.0, "temperature_c": 40.0, "power_w": 150.0, "throttle": []}
PLAIN = {
    "date": "2027-01-02",
    "commit": "abc1234",
    "sources": "0123456789abcdef",
    "python": "3.12.3",
    "versions": {"numpy": "2.4.6"},
    "cpu": "a processor, 16 cores",
    "quick": False,
    "seed": 0,
    "method": {"timing": "by the clock", "package": "the working tree", "inputs": "of several kinds"},
}
ON_GPU = PLAIN | {
    "gpu": "Test GPU",
    "arch": "sm_90",
    "driver": "580.1",
    "max_sm_mhz": 1980.0,
    "kernels": "PTX assembled",
    "rounds": 10,
    "before": STATE,
    "after": STATE,
}
CEILINGS = {"gemm_tflops": 800.0, "mma_sync_tflops": 500.0, "copy_tb_s": 4.0}
PEERS = {"FA2": {"version": "PyTorch 2.11", "how": "SDPA"}, "FA4": {"absent": "not installed"}}


def problem(batch: int, heads: int, seqlen: int, head_dim: int, causal: bool = False, **changes: Any) -> dict[str, Any]:
    sizes = {"batch": batch, "num_heads": heads, "num_heads_kv": heads, "seqlen_q": seqlen, "seqlen_k": seqlen}
    rest = {"head_dim": head_dim, "dtype": "float16", "causal": causal, "layout": "bhsd", "varlen": None}
    return sizes | rest | changes


def spread(name: str, x: float) -> dict[str, Any]:
    return {name: x, f"{name}_5_95": [0.9 * x, 1.2 * x]}


def times(us: float, flops: int = 10**9, nbytes: int = 10**6) -> dict[str, Any]:
    return spread("us", us) | {"max_error": 1e-4, "tflops": flops / us / 1e6, "gb_s": nbytes / us / 1e3}


def timed_row(name: str, shape: dict[str, Any], us: float, ratio: float | None, **more: Any) -> dict[str, Any]:
    peers = {} if ratio is None else {"FA2": times(us * ratio) | spread("ratio", ratio)}
    ours = times(us) | {"stem": "flash_fwd_f16_d64_sm89"}
    return {"id": name, "problem": shape, "flops": 10**9, "bytes": 10**6, "ours": ours, "peers": peers, **more}


def file(suite: str, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    timed = suite in results.ON_GPU
    conditions = PLAIN if suite == "size" else ON_GPU
    found = {"schema": 1, "suite": suite, "conditions": conditions, "peers": PEERS, "rows": rows, "skipped": {}}
    return found | ({"ceilings": CEILINGS} if timed else {}) | changes


def samples() -> dict[str, dict[str, Any]]:
    """A file of every suite."""
    reference = problem(1, 8, 512, 64)
    forward = [
        timed_row("a", problem(16, 32, 1024, 64), 2.5, 1.25),
        timed_row("b", problem(8, 32, 2048, 64), 4.0, 0.8),
        timed_row("c", problem(8, 32, 2048, 64, True), 5.0, None),
        timed_row("d", problem(4, 32, 4096, 128, True, num_heads_kv=8, dtype="bfloat16"), 10.0, 2.0),
    ]
    ours = {way: spread("us", us) for way, us in zip(results.HOST_WAYS, (4.0, 2.0, 5.0, 60.0, 40.0))}
    for way, x in ours.items():
        if way != "bare_launch":
            x |= spread("times_bare", x["us"] / 4)
    called = spread("us", 30.0) | spread("ratio", 0.5) | spread("ratio_planned", 6.0)
    base = {"scores": "random"}
    return {
        "forward": file("forward", forward, skipped={"e": "no packed sequences"}),
        "reference": file(
            "reference",
            [
                timed_row("qk", reference, 6.5, None, part="qk")
                | {"quoted": {"predecessor": {"us": 142.0, "where": "on another GPU"}}},
                timed_row("flash", reference, 5.4, 2.0, part="flash"),
            ],
        ),
        "small": file(
            "small",
            [
                timed_row("s", problem(1, 8, 128, 64), 3.0, 1.5),
                timed_row("t", problem(2, 8, 128, 64), 3.0, None) | {"peers": {"FA2": {"refused": "no such shape"}}},
                timed_row("u", problem(3, 8, 128, 64), 3.0, None) | {"ours": {"wrong": "an error of 1"}},
            ],
        ),
        "cliff": file(
            "cliff",
            [
                timed_row("random", problem(4, 32, 4096, 64), 100.0, 1.0, **base),
                timed_row("rising", problem(4, 32, 4096, 64), 120.0, 1.0, scores="rising", base="random")
                | spread("slowdown", 1.2),
            ],
        ),
        "accuracy": file(
            "accuracy",
            [
                {
                    "id": "d64-full-f16",
                    "problem": reference,
                    "ours": {"stem": "flash_fwd_f16_d64_sm89", "max_error": 1.3e-4, "rms_error": 1.4e-5},
                    "peers": {"FA2": {"max_error": 1.2e-4, "rms_error": 1.4e-5}},
                }
            ],
        ),
        "host": file("host", [{"id": "x", "problem": reference, "ours": ours, "peers": {"FA2": called}}]),
        "cold": file(
            "cold",
            [
                {"id": "interpreter", "ours": spread("seconds", 0.02) | {"runs": 5}, "peers": {}},
                {
                    "id": "import",
                    "ours": spread("seconds", 0.25) | {"runs": 5},
                    "peers": {"FA2": spread("seconds", 2.5) | spread("ratio", 10.0) | {"runs": 5}},
                },
            ],
        ),
        "size": file(
            "size",
            [
                {
                    "id": "installed",
                    "ours": {"bytes": 10_000_000, "packages": {"flashcore-drv": 1_000_000, "numpy": 9_000_000}},
                    "peers": {"FA2": {"bytes": 5 * 10**9, "packages": {"torch": 5 * 10**9}, "ratio": 500.0}},
                }
            ],
        ),
    }


def both(found: dict[str, Any], us: float = 2.0) -> dict[str, Any]:
    """A file as on a Hopper with both families: sm_90 takes so many µs in every row that is the whole attention."""
    found = copy.deepcopy(found)
    for row in found["rows"]:
        if "us" in row["ours"] and row.get("part", "flash") == "flash":
            row["sm_90"] = times(us) | {"stem": "flash_fwd_f16_d64_sm90a"} | spread("ratio", us / row["ours"]["us"])
            for peer in row["peers"].values():
                if "us" in peer:
                    peer |= spread("ratio_sm_90", peer["us"] / us)
    return found


def write(root: Path, files: dict[str, dict[str, Any]], date: str = "2027-01-02") -> None:
    folder = root / "benchmarks" / "test-gpu"
    folder.mkdir(parents=True, exist_ok=True)
    for suite, found in files.items():
        (folder / f"{date}-{suite}.json").write_text(json.dumps(found))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with results of every suite and a README whose blocks are empty."""
    (tmp_path / "README.md").write_text(README)
    write(tmp_path, samples())
    (tmp_path / "benchmarks" / "README.md").write_text(BARS)
    return tmp_path


def report(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPORT, "--root", root, "--gpu", "test-gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def fill_tables(root: Path) -> str:
    """Write the README as report.py does, without the plots."""
    readme = root / "README.md"
    readme.write_text(markers.fill(readme.read_text(), expected_blocks(root, newest(root, "test-gpu"))))
    return readme.read_text()


def fill_bars(root: Path) -> list[bars.Bar]:
    """Write benchmarks/README.md as report.py does; the bars."""
    path, suites = root / "benchmarks" / "README.md", newest(root, "test-gpu")
    path.write_text(markers.fill(path.read_text(), {"bars": bars.block(suites, others(root, "test-gpu"))}))
    return [bar for issue in bars.ISSUES for bar in issue(suites, others(root, "test-gpu"))]


def block_of(text: str, name: str) -> str:
    return markers.read(text, [*tables.BLOCKS, "l4"])[name]


def test_the_samples_are_valid() -> None:
    for found in samples().values():
        results.validate(found)


LINES = {
    "forward": [
        "| 64 full | 400 (1.25) | 250 (0.80) |",
        "| 64 causal | – | 200 |",
        "The highest rate is 80% of the 500 TFLOP/s that `mma.sync` reaches from registers and 50% of the 800 TFLOP/s",
        "| FA2 | PyTorch 2.11 | 2 | 1.00 | 0.80 | 1.25 |",
        "| 4 × 32/8 × 4096 × 128 causal bf16 | 100 | 50 (2.00) |",
        "- not measured: no packed sequences (e)",
    ],
    "reference": [
        "| part | max error | ours | FA2 | predecessor |",
        "| qk | 1.0e-04 | 6.50 | – | 142 |",
        "| flash | 1.0e-04 | 5.40 | 10.8 (2.00×) | – |",
    ],
    "small": [
        "| 1 × 8 × 128 × 64 | 3.00 | 4.50 (1.50×) | – |",
        "| 2 × 8 × 128 × 64 | 3.00 | refused | – |",
        "- FA2 refused: no such shape (t)",
        "- flashcore_drv wrong: an error of 1 (u)",
    ],
    "cliff": ["| head_dim | rising |", "| 64 full | 1.20 (FA2 1.20) |"],
    "accuracy": ["| head_dim | ours | FA2 |", "| 64 full float16 | 1.30 (14.00) | 1.20 (14.00) |"],
    "host": [
        "| planned call | 5.00 (4.50–6.00), 1.25× bare |",
        "| FA2 (PyTorch 2.11) | 30.0 (27.0–36.0), 0.5× ours |",
    ],
    "cold": ["| flashcore_drv | 0.02 | 0.25 |", "| FA2 (PyTorch 2.11) | – | 2.50 (10.0×) |"],
    "size": [
        "| flashcore_drv | 10.0 | 2 | numpy 9.00, flashcore-drv 1.00 |",
        "| FA2 (PyTorch 2.11) | 5000 (500×) | 1 | torch 5000 |",
    ],
}


@pytest.mark.parametrize("suite", tables.BLOCKS)
def test_a_block_is_the_data(root: Path, suite: str) -> None:
    found = block_of(fill_tables(root), suite)
    for line in LINES[suite]:
        assert line in found
    assert f"`benchmarks/test-gpu/2027-01-02-{suite}.json`" in found


def test_the_text_around_the_blocks_stays(root: Path) -> None:
    text = fill_tables(root)
    assert markers.fill(text, dict.fromkeys([*tables.BLOCKS, "l4"], "")) == README


def test_a_suite_that_was_not_run_has_an_empty_block(root: Path) -> None:
    (root / "benchmarks" / "test-gpu" / "2027-01-02-host.json").unlink()
    assert block_of(fill_tables(root), "host") == ""


def test_the_newest_file_counts(root: Path) -> None:
    newer = samples()["small"]
    newer["rows"] = newer["rows"][:1]
    newer["rows"][0] |= {"ours": times(2.0) | {"stem": "x"}, "peers": {}}
    write(root, {"small": newer}, "2027-01-10")
    found = block_of(fill_tables(root), "small")
    assert "| 1 × 8 × 128 × 64 | 2.00 | – | – |" in found
    assert "`benchmarks/test-gpu/2027-01-10-small.json`" in found


def test_files_of_other_tools_are_left_out(root: Path) -> None:
    before = newest(root, "test-gpu")
    write(root, {"profile": {"rows": []}, "other": {"schema": 1, "suite": "other"}})
    assert newest(root, "test-gpu") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("<!-- report:host -->\n<!-- /report:host -->\n", ""), "<!-- report:host --> and"),
        (lambda text: text.replace("<!-- /report:host -->\n", ""), "<!-- report:host -->: without its counterpart"),
        (lambda text: text + "<!-- report:new -->\n<!-- /report:new -->\n", "no such block: new"),
        (lambda text: text + "<!-- report:host -->\n<!-- /report:host -->\n", "a block is there twice: host"),
    ],
)
def test_wrong_markers_are_named_and_nothing_is_written(root: Path, change: Any, message: str) -> None:
    text = change(README)
    (root / "README.md").write_text(text)
    done = report(root)
    assert done.returncode == 1
    assert message in done.stderr
    assert (root / "README.md").read_text() == text


def test_an_invalid_file_is_named(root: Path) -> None:
    broken = samples()["host"]
    del broken["rows"][0]["ours"]["planned"]
    write(root, {"host": broken})
    done = report(root, "--check")
    assert done.returncode == 1
    assert "2027-01-02-host.json" in done.stderr
    assert "planned" in done.stderr


def test_check_names_a_stale_table_and_missing_plots(root: Path) -> None:
    text = fill_tables(root).replace("| 64 full | 400", "| 64 full | 999")
    (root / "README.md").write_text(text)
    done = report(root, "--check")
    assert done.returncode == 1
    assert "-| 64 full | 999 (1.25)" in done.stdout
    assert "+| 64 full | 400 (1.25)" in done.stdout
    assert "forward.svg is missing" in done.stdout
    assert (root / "README.md").read_text() == text


def test_check_compares_the_digests_of_plots(root: Path) -> None:
    fill_tables(root)
    fill_bars(root)
    folder = root / "docs" / "plots"
    folder.mkdir(parents=True)
    expected = figures.all_figures(newest(root, "test-gpu"))
    assert set(expected) == {"forward", "latency", "host", "roofline"}
    for name, figure in expected.items():
        (folder / f"{name}.svg").write_text(f"<svg>{figures.digest(figure)}</svg>")
    assert report(root, "--check").returncode == 0
    (folder / "host.svg").write_text("<svg/>")
    (folder / "old.svg").write_text("<svg/>")
    done = report(root, "--check")
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["host.svg shows other data", "old.svg has no data"]


def test_a_digest_follows_the_data() -> None:
    found = samples()["host"]
    other = copy.deepcopy(found)
    other["rows"][0]["ours"]["planned"]["us"] = 5.1
    first, second = (figures.host(Suite("x.json", x)) for x in (found, other))
    assert first
    assert second
    assert figures.digest(first) == figures.digest(copy.deepcopy(first)) != figures.digest(second)


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="matplotlib is not installed (extra bench)")
def test_drawing_is_the_same_each_time(root: Path) -> None:
    folder = root / "docs" / "plots"
    done = report(root)
    assert done.returncode == 0, done.stderr
    assert (root / "README.md").read_text() == fill_tables(root)
    first = {path.name: path.read_text() for path in folder.glob("*.svg")}
    assert set(first) == {"forward.svg", "latency.svg", "host.svg", "roofline.svg"}
    assert report(root, "--check").returncode == 0
    assert report(root).returncode == 0
    assert {path.name: path.read_text() for path in folder.glob("*.svg")} == first
    for text in first.values():
        assert re.search(r"sha256:[0-9a-f]{64}", text)
        assert "dc:date" not in text


# ---- two families


BOTH_LINES = {
    "forward": [
        "TFLOP/s of the kernels for compute capability 8.0 and later, and in brackets how many times FA2: float16,",
        "| 64 full | 400 (1.25) | 250 (0.80) |",
        "TFLOP/s of the kernels for Hopper alone (sm_90), and in brackets how many times FA2: float16",
        "| 64 full | 500 (1.56) | 500 (1.60) |",
        "| FA2 | PyTorch 2.11 | the kernels for Hopper alone (sm_90) | 2 | 1.58 | 1.56 | 1.60 |",
        "| 4 × 32/8 × 4096 × 128 causal bf16 | 100 | 500 | 50 (2.00, 10.00) |",
    ],
    "reference": [
        "| flash | 1.0e-04 | 5.40 | 2.00 | 10.8 (2.00×, 5.40×) | – |",
        "| qk | 1.0e-04 | 6.50 | – | – | 142 |",
    ],
    "small": ["| 1 × 8 × 128 × 64 | 3.00 | 2.00 | 4.50 (1.50×, 2.25×) | – | – |"],
}


@pytest.mark.parametrize("suite", BOTH_LINES)
def test_a_block_shows_both_families(root: Path, suite: str) -> None:
    found = both(samples()[suite])
    results.validate(found)
    write(root, {suite: found})
    block = block_of(fill_tables(root), suite).replace("\n", " ")
    for line in BOTH_LINES[suite]:
        assert line in block


def test_the_slowdowns_of_both_families_are_in_one_cell(root: Path) -> None:
    found = both(samples()["cliff"], 100.0)
    found["rows"][1] |= spread("slowdown_sm_90", 1.0)
    results.validate(found)
    write(root, {"cliff": found})
    assert "| 64 full | 1.20, 1.00 (FA2 1.20) |" in block_of(fill_tables(root), "cliff")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["sm_90"].pop("ratio"), "lacks ratio"),
        (lambda row: row["sm_90"].update(stem=""), "a text is wanted"),
        (lambda row: row["peers"]["FA2"].pop("ratio_sm_90"), "lacks ratio_sm_90"),
        (lambda row: row.pop("sm_90"), "has ratio_sm_90"),
        (lambda row: row.update(sm_90={"refused": ""}), "a text is wanted"),
        (lambda row: row.update(auto="flash"), "'flash'; one of ours, sm_90"),
        (
            lambda row: row.update(spread("slowdown_sm_90", 1.0) | {"sm_90": {"wrong": "x"}, "peers": {}}),
            "without a time",
        ),
    ],
)
def test_a_second_family_is_held_to_the_schema(change: Any, message: str) -> None:
    found = both(samples()["forward"])
    change(found["rows"][0])
    with pytest.raises(results.InvalidResults, match=message):
        results.validate(found)


def test_figures_have_a_line_and_a_bar_for_each_family(root: Path) -> None:
    suites = {name: Suite("x.json", both(found)) for name, found in samples().items() if name in BOTH_LINES}
    found = figures.all_figures(suites)
    names = [s["name"] for s in found["forward"]["panels"][0]["series"]]
    assert names == ["flashcore_drv", "flashcore_drv sm_90", "FA2"]
    (small, *_) = (panel for panel in found["latency"]["panels"] if "seqlen 128" in panel["title"])
    assert [b["name"] for b in small["bars"]] == ["flashcore_drv", "flashcore_drv sm_90", "FA2"]
    assert [b["group"] for b in small["bars"]] == ["ours", "ours", "peer"]
    assert {y for g in found["roofline"]["groups"] for _, y in g["points"]} == {500.0}
    assert "faster of our families" in found["roofline"]["title"]


# ---- bars


def grid_rows(hopper_us: float = 9.0, fa4: bool = True) -> list[dict[str, Any]]:
    """36 points on which ours takes 10 µs, FA2 13, cuDNN 9.5 and FA4 11."""
    rows = []
    for d, causal in ((d, causal) for d in (64, 128, 256) for causal in (False, True)):
        for s in (512, 1024, 2048, 4096, 8192, 16384):
            found = file(
                "forward", [timed_row(f"{d}-{causal}-{s}", problem(16384 // s, 2048 // d, s, d, causal), 10.0, 1.3)]
            )
            row = found["rows"][0]
            for name, us in (("cuDNN", 9.5), *([("FA4", 11.0)] if fa4 else [])):
                row["peers"][name] = times(us) | spread("ratio", us / 10)
            rows += both(found, hopper_us)["rows"]
    return rows


def forward_bars(rows: list[dict[str, Any]], what: str, wanted: str = "") -> dict[int, bars.Bar]:
    found = {"forward": Suite("x.json", file("forward", rows))}
    every = [bar for issue in bars.ISSUES for bar in issue(found, {})]
    return {bar.issue: bar for bar in every if what in bar.what and wanted in bar.wanted}


def test_a_bar_is_met_when_all_points_are_measured_and_none_is_below() -> None:
    found = forward_bars(grid_rows(), "36 points", "each of 36")
    assert [found[5].met, found[6].met] == [True, True]
    assert found[6].value == "least 1.056 (64-False-512)"  # cuDNN's 9.5 of 9
    means = forward_bars(grid_rows(), "geometric mean", "at least 1.12")
    assert (means[6].value, means[6].met) == ("1.056", False)


def test_one_point_below_misses_the_bar_whatever_else_is_measured() -> None:
    rows = grid_rows()[:2]
    rows[1]["peers"]["FA2"] |= spread("ratio", 0.99)
    found = forward_bars(rows, "36 points", "each of 36")[5]
    assert found.met is False
    assert found.value == "least 0.990 (64-False-1024), 1 of 2 below, not all measured"


def test_a_part_of_the_points_or_of_the_peers_meets_nothing() -> None:
    found = forward_bars(grid_rows()[:35], "36 points")
    assert {bar.met for bar in found.values()} == {None}
    assert "not all measured" in str(found[5].value)
    without = forward_bars(grid_rows(fa4=False), "36 points")
    assert without[5].met is True
    assert (without[6].met, without[6].value) == (None, None)


def test_the_rate_of_long_sequences_follows_that_of_cudnn_in_the_run() -> None:
    every = list(bars.of_issue_6({"forward": Suite("x.json", file("forward", grid_rows()))}, {}))
    full, causal = (bar for bar in every if "8192" in bar.what)
    assert (full.met, causal.met) == (True, False)  # 1.056 beside 680 / 655 and 650 / 515
    assert full.value == "1.056 (111 beside 105 TFLOP/s)"


def test_dispatch_has_to_take_the_faster_family() -> None:
    rows = [row | {"auto": "sm_90"} for row in grid_rows()]
    rows[3]["auto"] = "ours"
    found = forward_bars(rows, "that `attention()` takes")[6]
    assert (found.met, found.value) == (False, "11 % at worst (64-False-4096), 1 of 36 above")
    rows[3]["auto"] = "sm_90"
    assert forward_bars(rows, "that `attention()` takes")[6].met is True


def test_bars_of_the_host_the_start_and_the_wheel() -> None:
    found = samples()
    (row,) = found["host"]["rows"]
    row["ours"] |= {
        "one_shot_cupy": spread("us", 8.5) | spread("times_bare", 2.1),
        "one_shot_jax": {"refused": "no jax"},
    }
    results.validate(found["host"])
    found["cold"] = copy.deepcopy(found["cold"])
    found["cold"]["rows"][1]["id"] = "first_result"
    suites = {name: Suite("x.json", x) for name, x in found.items()}
    every = {bar.what: bar for bar in bars.of_issue_7(suites, {})}
    assert (every["planned call"].met, every["replay of a graph of one call"].met) == (False, True)
    assert (every["`attention()` on CuPy arrays"].value, every["`attention()` on CuPy arrays"].met) == (
        "bare + 4.50 µs",
        True,
    )
    assert every["`attention()` on JAX arrays"].value is None
    assert every["host time of FA2 over a planned call"].met is True
    assert every["host time of FA2 over `attention()`"].met is False
    assert every["fresh process from a wheel to its first result"].met is None  # of the working tree
    method = {**PLAIN["method"], "package": "flashcore_drv installed from flashcore_drv-1-py3-none-any.whl"}
    found["cold"]["conditions"] = {**ON_GPU, "method": method}
    found["size"]["rows"].append(
        {"id": "wheel", "ours": {"bytes": 2 * 10**7, "packages": {"x.whl": 2 * 10**7}}, "peers": {}}
    )
    results.validate(found["size"])
    every = {bar.what: bar for bar in bars.of_issue_7({n: Suite("x.json", x) for n, x in found.items()}, {})}
    assert every["fresh process from a wheel to its first result"].met is True
    assert (every["the wheel"].value, every["the wheel"].met) == ("20.0 MB", False)


def test_bars_of_errors_are_of_every_dtype_and_head_dim() -> None:
    rows = [{**samples()["accuracy"]["rows"][0], "id": str(i)} for i in range(bars.ACCURACY_ROWS)]
    largest, mean = bars.accuracy(5, {"accuracy": Suite("x.json", file("accuracy", rows))}, "ours", "FA2")
    assert (largest.met, largest.value) == (False, "1.083 (0), 24 of 24 above")
    assert (mean.met, mean.value) == (True, "1.000 (0)")
    part = bars.accuracy(5, {"accuracy": Suite("x.json", file("accuracy", rows[1:]))}, "ours", "FA2")
    assert [bar.met for bar in part] == [False, None]


def test_bars_of_other_tools(root: Path) -> None:
    kernels = [
        {"stem": "flash_fwd_f16_d64_sm89", "spill_bytes": 0},
        {"stem": "flash_fwd_f16_d64_sm90a", "spill_bytes": 8},
    ]
    check = {
        "tests": {"features": "FEATURE_EXAMPLES=2000 in 8 processes: exit status 0"},
        "compute_sanitizer": {"memcheck": "0 errors", "racecheck": "0 hazards displayed (0 errors, 0 warnings)"},
        "resources": kernels,
    }
    by_name = {
        issue: {bar.what: bar for bar in of({}, {"gpu_check": check})} for issue, of in enumerate(bars.ISSUES, 4)
    }
    assert by_name[5]["bytes that kernels spill"].met is True
    assert by_name[6]["bytes that kernels spill"].met is False
    assert by_name[5]["compute-sanitizer"].met is by_name[5]["hypothesis examples over all features"].met is True
    check["compute_sanitizer"]["memcheck"] = "1 errors"
    check["tests"]["features"] = "FEATURE_EXAMPLES=800 in 8 processes: exit status 0"
    again = {bar.what: bar for bar in bars.of_issue_5({}, {"gpu_check": check})}
    assert again["compute-sanitizer"].met is again["hypothesis examples over all features"].met is False


def test_the_seconds_of_a_quick_run_are_a_bar() -> None:
    rows = [{"id": f"s{i}", "seconds": 30.0, "rows": 3} for i in range(8)]
    found = file("quick", rows, peers={})
    results.validate(found)
    (bar, *_) = bars.of_issue_4({"quick": Suite("x.json", found)}, {})
    assert bar.met is True
    assert str(bar.value).startswith("240 s (s0 30, ")
    (bar, *_) = bars.of_issue_4({"quick": Suite("x.json", file("quick", rows[1:], peers={}))}, {})
    assert bar.met is None


def test_the_table_of_bars_is_checked_like_the_readme(root: Path) -> None:
    fill_tables(root)
    found = fill_bars(root)
    text = (root / "benchmarks" / "README.md").read_text()
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == len(found) + 2
    assert "| 7 | planned call | at most 1.2 × the bare launch | 1.25 × (5.00 µs of 4.00) | **no** |" in text
    (root / "benchmarks" / "README.md").write_text(text.replace("| **no** |", "| yes |"))
    done = report(root, "--check")
    assert done.returncode == 1
    assert "+| 7 | planned call" in done.stdout
    (root / "benchmarks" / "README.md").write_text("")
    assert "benchmarks/README.md: lines are missing" in report(root, "--check").stderr


def test_the_readme_of_this_repository_is_its_data() -> None:
    done = subprocess.run([sys.executable, REPORT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_prediction_for_the_l4_is_its_data() -> None:
    (*_, path) = sorted((REPORT.parent.parent / "benchmarks" / "predicted").glob("*-l4.json"))
    block = expected_blocks(REPORT.parent.parent, {})["l4"]
    assert "not measured" in block
    for row in json.loads(path.read_text())["rows"]:
        assert f"| {row['problem']} | {'causal' if row['causal'] else 'full'} | `{row['stem']}` |" in block
