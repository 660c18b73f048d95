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
from reporting import figures, markers, tables  # noqa: E402
from reporting.data import Suite, newest  # noqa: E402

REPORT = ROOT / "scripts" / "report.py"
README = (
    "# Title\n\n"
    + "\n".join(f"<!-- report:{name} -->\n<!-- /report:{name} -->\n" for name in (*tables.BLOCKS, "l4"))
    + "\nThe end.\n"
)
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
    return tmp_path


def report(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPORT, "--root", root, "--gpu", "test-gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def fill_tables(root: Path) -> str:
    """Write the README as report.py does, without the plots."""
    readme = root / "README.md"
    readme.write_text(markers.fill(readme.read_text(), expected_blocks(root, newest(root, "test-gpu"))))
    return readme.read_text()


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


def test_the_readme_of_this_repository_is_its_data() -> None:
    done = subprocess.run([sys.executable, REPORT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_prediction_for_the_l4_is_its_data() -> None:
    (*_, path) = sorted((REPORT.parent.parent / "benchmarks" / "predicted").glob("*-l4.json"))
    block = expected_blocks(REPORT.parent.parent, {})["l4"]
    assert "not measured" in block
    for row in json.loads(path.read_text())["rows"]:
        assert f"| {row['problem']} | {'causal' if row['causal'] else 'full'} | `{row['stem']}` |" in block
