"""scripts/run.py as its user sees it: what it prints, what it saves, and its exit status."""

import json
import re
import shutil

import numpy as np
import pytest
from support import ROOT, run_python

from flashcore_drv import images
from flashcore_drv.dtypes import BF16
from flashcore_drv.runtime import Device, is_emulated

RUN = ROOT / "scripts" / "run.py"
SMALL = ("--batch", 2, "--heads", 4, "--seqlen-q", 20, "--seqlen-k", 36, "--head-dim", 24, "--repeat", 2)
PARTS = ["qk", "softmax", "pv", "unfused", "flash"]


@pytest.fixture(autouse=True)
def built(device):
    if not list(images.build_folder().rglob("*_sm89.*")):
        pytest.skip(f"nothing is built in {images.build_folder()}: make cubin")


def run(*args, **env):
    """A run under the driver that the tests use, which then need not say that there is no GPU."""
    return run_python(RUN, *args, **{"FLASHCORE_DRIVER": "emulator" if is_emulated() else "cuda", **env})


def report(*args):
    """The JSON of a run with the right result."""
    ran = run(*args, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    return json.loads(ran.stdout)


def arrays(dtype=np.float16, layout="bshd", heads_kv=2):
    rng = np.random.default_rng(1)
    shapes = [(2, 20, 4, 24), (2, 36, heads_kv, 24), (2, 36, heads_kv, 24)]
    made = [rng.standard_normal(s).astype(dtype) for s in shapes]
    return made if layout == "bshd" else [np.ascontiguousarray(x.swapaxes(1, 2)) for x in made]


def float64_attention(q, k, v):
    """Of [batch, rows, heads, cols]."""
    q, k, v = (x.astype(np.float64).swapaxes(1, 2) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], 1) for x in (k, v))
    p = np.exp(q @ k.swapaxes(2, 3) * q.shape[3] ** -0.5)
    return (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2)


# ---- what it prints


def test_the_table(device) -> None:
    ran = run(*SMALL)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert lines[0].split(maxsplit=1) == ["device", device.name]
    assert "batch 2, heads 4, seqlen 20 x 36, head_dim 24, float16, scale 0.204124, bshd, input seed 0" in lines[1]
    rows = {line.split()[0]: line for line in lines if line.split()[:1] and line.split()[0] in PARTS}
    assert list(rows) == PARTS
    stems = {"qk": "qk_wmma_f16_d64", "softmax": "softmax_f16_w1", "pv": "pv_wmma_f16_d64"}
    for part, stem in (stems | {"flash": "flash_fwd_general_f16_d32"}).items():
        assert f" {stem}_sm{'89' if Device.get(0).arch >= 89 else '80'} " in rows[part]
    assert all(" ok " in row for row in rows.values())
    assert re.search(r"largest difference from float64: \d\.\d\de-\d\d: right$", lines[-1])
    assert ("There is no GPU here: the emulator ran the kernels' PTX" in ran.stdout) == is_emulated()


def test_json(device) -> None:
    found = report(*SMALL, "--heads-kv", 2)
    assert set(found) == {"device", "emulated", "problem", "parts", "lse_max_error", "ok"}
    assert (found["device"], found["emulated"], found["ok"]) == (device.name, is_emulated(), True)
    assert found["problem"] == {
        "batch": 2, "num_heads": 4, "num_heads_kv": 2, "seqlen_q": 20, "seqlen_k": 36, "head_dim": 24,
        "dtype": "float16", "causal": False, "window_size": [-1, -1], "softcap": 0.0, "softmax_scale": 24**-0.5,
        "layout": "bshd", "input": "seed 0",
    }  # fmt: skip
    assert [p["part"] for p in found["parts"]] == PARTS
    scores, keys = 2 * 4 * 20 * 36, 2 * 2 * 36 * 24
    queries = 2 * 4 * 20 * 24
    for part in found["parts"]:
        assert part["ok"]
        assert part["misplaced_nan_or_inf"] == 0
        assert 0 < part["max_error"] <= part["allowed_error"] < 0.01
        assert (part["gpu_us"] is None) == (part["percent_of_roofline"] is None) == is_emulated()
    product, least = 2 * scores * 24, 4 * queries + 4 * keys + 4 * 2 * 4 * 20
    assert [p["flops"] for p in found["parts"]] == [product, 0, product, 2 * product, 2 * product]
    assert [p["bytes"] for p in found["parts"]] == [
        2 * queries + 2 * keys + 4 * scores,
        6 * scores,
        2 * scores + 2 * keys + 2 * queries,
        least,
        least,
    ]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (("--causal",), {"causal": True}),
        (("--dtype", "bf16"), {"dtype": "bfloat16"}),
        (("--dtype", "float16"), {"dtype": "float16"}),
        (("--layout", "bhsd"), {"layout": "bhsd"}),
        (("--heads-kv", "1"), {"num_heads_kv": 1}),
        (("--scale", "0.5"), {"softmax_scale": 0.5}),
        (("--window", "5", "3"), {"window_size": [5, 3]}),
        (("--window", "5", "-1", "--causal"), {"window_size": [5, -1], "causal": True}),
        (("--softcap", "0.7"), {"softcap": 0.7}),
        (("--impl", "unfused", "--seed", "3"), {"input": "seed 3"}),
        (
            ("--causal", "--dtype", "bfloat16", "--layout", "bhsd", "--heads-kv", "2"),
            {"causal": True, "num_heads_kv": 2},
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_options(options, changed) -> None:
    found = report(*SMALL, *options)
    assert found["ok"]
    assert {name: found["problem"][name] for name in changed} == changed


def test_help() -> None:
    ran = run("--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    options = (
        "input batch heads heads-kv seqlen-q seqlen-k head-dim dtype causal window softcap scale layout impl output "
        "repeat json seed"
    )
    for option in options.split():
        assert re.search(rf"^  --{option}\b.*", ran.stdout, re.M), option
    assert "Exit status" in ran.stdout


# ---- input and output


@pytest.mark.parametrize("layout", ["bshd", "bhsd"])
def test_an_npz_in_and_an_npy_out(tmp_path, layout) -> None:
    q, k, v = arrays(layout=layout)
    np.savez(tmp_path / "in.npz", v=v, q=q, k=k)
    found = report("--input", tmp_path / "in.npz", "--output", tmp_path / "out.npy", "--layout", layout, "--repeat", 1)
    assert found["problem"]["input"] == [str(tmp_path / "in.npz")]
    assert found["problem"]["num_heads_kv"] == 2
    out = np.load(tmp_path / "out.npy")
    assert (out.shape, out.dtype) == (q.shape, np.float16)
    true = float64_attention(*arrays())
    assert np.abs((out if layout == "bshd" else out.swapaxes(1, 2)) - true).max() < 2e-3


def test_three_npy_in_another_type_and_order(tmp_path) -> None:
    made = arrays(np.float64)
    files = [tmp_path / f"{name}.npy" for name in "qkv"]
    for file, array in zip(files, made):
        np.save(file, np.asfortranarray(array))
    found = report("--input", *files, "--dtype", "f16", "--output", tmp_path / "out.npy", "--repeat", 1)
    assert found["problem"]["dtype"] == "float16"
    true = float64_attention(*(x.astype(np.float16) for x in made))
    assert np.abs(np.load(tmp_path / "out.npy") - true).max() < 2e-3


def test_bfloat16_is_saved_as_float32(tmp_path) -> None:
    made = arrays(np.float32)
    np.savez(tmp_path / "in.npz", **dict(zip("qkv", made)))
    options = "--input", tmp_path / "in.npz", "--dtype", "bf16", "--output", tmp_path / "out.npy", "--repeat", 1
    assert report(*options)["problem"]["dtype"] == "bfloat16"
    out = np.load(tmp_path / "out.npy")
    assert out.dtype == np.float32
    assert (out == out.astype(BF16.to_numpy())).all()
    assert np.abs(out - float64_attention(*made)).max() < 3e-2


def test_the_seed_chooses_the_input(tmp_path) -> None:
    results = []
    for seed in (0, 0, 1):
        report(*SMALL, "--seed", seed, "--output", tmp_path / "out.npy")
        results.append(np.load(tmp_path / "out.npy").tobytes())
    assert results[0] == results[1] != results[2]


# ---- wrong input


def refused(*args, **env):
    """The one line that it says."""
    ran = run(*args, **env)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "0"), "--batch 0; allowed: 1 or more"),
        (("--heads-kv", "0"), "--heads-kv 0; allowed: 1 or more"),
        (("--seqlen-k", "0"), "--seqlen-k 0; allowed: 1 or more"),
        (("--seqlen-q", "-3"), "--seqlen-q -3; allowed: 1 or more"),
        (("--repeat", "0"), "--repeat 0; allowed: 1 or more"),
        (("--heads-kv", "3"), "q has 4 heads and k has 3"),
        (("--head-dim", "20"), "q has head_dim 20; allowed: multiples of 8"),
        (("--head-dim", "264"), "required head_dim=264"),
        (("--scale", "nan"), "softmax_scale=nan; allowed: positive"),
        (("--scale", "0"), "softmax_scale=0.0; allowed: positive"),
        (("--scale", "big"), "argument --scale: invalid float value: 'big'"),
        (("--dtype", "f64"), "argument --dtype: invalid choice: 'f64'"),
        (("--layout", "sbhd"), "argument --layout: invalid choice: 'sbhd'"),
        (("--impl", "fused"), "argument --impl: invalid choice: 'fused'"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("--output", "/nonexistent/out.npy"), "No such file or directory: '/nonexistent/out.npy'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)
def test_wrong_options(options, words) -> None:
    assert words in refused(*SMALL, *options)


def test_wrong_files(tmp_path) -> None:
    q, k, v = arrays()
    np.savez(tmp_path / "without_v.npz", q=q, k=k)
    np.savez(tmp_path / "long.npz", q=q, k=k, v=v.repeat(2, 1))
    np.savez(tmp_path / "double.npz", q=q.astype(float), k=k, v=v)
    np.savez(tmp_path / "objects.npz", q=np.array([None]), k=k, v=v)
    np.savez(tmp_path / "words.npz", q=np.array(["word"]), k=k, v=v)
    np.save(tmp_path / "q.npy", q)
    (tmp_path / "garbage.npz").write_bytes(b"garbage")
    (tmp_path / "zip.npz").write_bytes(b"PK\x03\x04garbage")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "q.npy").read_bytes()[:-7])
    cases = {
        ("missing.npz",): "No such file or directory",
        ("without_v.npz",): "has no array 'v'; it needs q, k and v",
        ("long.npz",): "v has seqlen_k 72, k has 36",
        ("double.npz",): "q (use --dtype to convert) has dtype float64; allowed: float16, bfloat16",
        ("objects.npz",): "objects.npz: ",
        ("words.npz", "--dtype", "f16"): "words.npz: ",
        ("garbage.npz",): "garbage.npz: ",
        ("zip.npz",): "zip.npz: ",
        ("q.npy",): "--input takes one .npz or three .npy files, not 1",
        ("q.npy", "q.npy"): "--input takes one .npz or three .npy files, not 2",
        ("q.npy", "q.npy", "empty.npy"): "empty.npy",
        ("q.npy", "q.npy", "cut.npy"): "cut.npy",
    }
    for (*files, last), words in cases.items():
        paths = [f if f.startswith("--") else tmp_path / f for f in files]
        last = tmp_path / last if "." in last else last
        assert words in refused("--input", *paths, last), files


def test_nothing_built(tmp_path) -> None:
    line = refused(*SMALL, FLASHCORE_BUILD=str(tmp_path))
    assert "is missing" in line
    assert "make cubin" in line


# ---- a wrong result


def test_a_wrong_kernel_is_found(tmp_path) -> None:
    if not is_emulated():
        pytest.skip("changes PTX, which only the emulator loads")
    shutil.copytree(images.build_folder() / "ptx", tmp_path / "ptx")
    path = tmp_path / "ptx" / "softmax_f16_w1_sm89.ptx"
    log2_e, less = "0f3FB8AA3B", "0f3FB80000"
    assert log2_e in path.read_text()
    path.write_text(path.read_text().replace(log2_e, less))
    ran = run(*SMALL, "--json", FLASHCORE_BUILD=str(tmp_path))
    assert (ran.returncode, ran.stderr) == (1, "")
    found = json.loads(ran.stdout)
    assert not found["ok"]
    assert [p["part"] for p in found["parts"] if not p["ok"]] == ["softmax", "pv", "unfused"]
    ran = run(*SMALL, FLASHCORE_BUILD=str(tmp_path))
    assert ran.returncode == 1
    assert ran.stdout.splitlines()[-1].endswith(": WRONG")
