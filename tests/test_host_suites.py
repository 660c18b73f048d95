"""The suites host, cold and size: their rows are of the schema and say what was measured. Times are the emulator's."""

import contextlib
import json
import subprocess
import sys
import types
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from flashcore_drv.runtime import Device, DeviceArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from benchmark import conditions, peers, results, suite_cold, suite_host, suite_size, suites  # noqa: E402
from benchmark.cases import Case, Tensors, Truth  # noqa: E402

TINY = Case("tiny", 1, 1, 1, 16, 16, 64)


def run(name: str, device: Device, **options: Any) -> dict[str, Any]:
    """The file of a suite."""
    suite = suites.load(name)
    found = conditions.conditions(suite.METHOD, quick=True, packages=suite.PACKAGES)
    if name in results.BESIDE_GPU:
        found |= conditions.gpu_conditions(device, rounds=2)
    record = results.Record(name, found)
    suite.run(suites.Run(record, device, quick=True, rounds=2, **options))
    made = record.to_json()
    assert made == json.loads(json.dumps(made))
    assert suite.lines(made)
    return made


class Echo(peers.Prepared):
    """A peer's result."""

    def __init__(self, truth: Truth, offset: float) -> None:
        self.truth, self.offset = truth, offset

    def rows(self, batch: int, head: int, where: slice) -> Any:
        found, *_ = (true for b, h, rows, true, _ in self.truth.samples if (b, h, rows) == (batch, head, where))
        return found + self.offset

    def sample(self, timer: Any, repeat: int) -> Any:
        raise NotImplementedError


class EchoPeer(peers.Peer):
    """A peer whose result is the truth, or beside it by so much."""

    version, how = "1", "an echo"

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def prepare(self, sets: Any, stream: Any) -> Echo:
        if self.offset < 0:
            raise RuntimeError("no such shape\nand more")
        return Echo(Truth(sets[0]), self.offset)


@pytest.fixture
def small_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite host on one problem of 16 queries."""
    monkeypatch.setattr(suite_host, "CASES", (TINY,))
    monkeypatch.setattr(suite_host, "CALLS", 2)
    monkeypatch.setattr(suite_host, "ROUNDS", 1)


def test_host_times_every_way_and_the_peers(small_host: None, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = {"FA2": 0.0, "cuDNN": 0.5, "FA4": -1.0}
    found = {name: EchoPeer(x) for name, x in offsets.items()}
    members = {name: {"version": peer.version, "how": peer.how} for name, peer in found.items()}
    monkeypatch.setattr(peers, "find", lambda asked: (found, members))
    waited = []

    def candidate(tensors: Tensors, prepared: Any, device: Device) -> suite_host.Candidate:
        return suite_host.Candidate(lambda: 7, contextlib.nullcontext, waited.append)

    monkeypatch.setattr(suite_host, "PEERS", dict.fromkeys(offsets, candidate))
    (row,) = run("host", device)["rows"]
    assert set(row["ours"]) >= set(results.HOST_WAYS)
    for way in ("one_shot_cupy", "one_shot_jax"):
        assert row["ours"][way].keys() & {"us", "refused"}
    assert set(row["peers"]["FA2"]) >= {"us", "ratio", "ratio_planned"}
    assert row["peers"]["cuDNN"] == {"wrong": "error 0.5"}
    assert row["peers"]["FA4"] == {"refused": "RuntimeError: no such shape"}
    assert waited
    assert set(waited) == {7}


def test_host_reports_a_wrong_result_and_does_not_time_it(
    small_host: None, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_host.fc, "attention", lambda *args, **options: None)
    (row,) = run("host", device, peers=())["rows"]
    assert row["peers"] == {}
    assert "one_shot" in row["ours"]["wrong"]
    assert "1024 NaN" in row["ours"]["wrong"]


def test_host_waits_outside_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0]
    monkeypatch.setattr(suite_host.time, "perf_counter_ns", lambda: clock[0])
    monkeypatch.setattr(suite_host, "CALLS", 4)

    def call() -> None:
        clock[0] += 3000

    @contextlib.contextmanager
    def around() -> Any:
        clock[0] += 10**6
        yield
        clock[0] += 10**6

    def wait(_: None) -> None:
        clock[0] += 10**6

    assert suite_host.Candidate(call, around, wait).sample() == 3.0


def test_the_peers_of_host_have_adapters() -> None:
    assert set(suite_host.PEERS) <= set(peers.ADAPTERS)


def test_cold_starts_fresh_processes(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_cold, "CASE", TINY)
    found = run("cold", device, peers=())
    steps = [row["ours"]["seconds"] for row in found["rows"]]
    assert [row["id"] for row in found["rows"]] == ["interpreter", "import", "first_result"]
    assert 0 < steps[0] < steps[1] < steps[2]
    assert found["rows"][0]["ours"]["runs"] == 2
    assert found["conditions"]["method"]["package"] == "flashcore_drv as the working tree"


FAKE = """
import sys, time
import numpy as np
name, folder = sys.argv[1:]
if name == "JAX":
    sys.exit("first\\nno GPU")
print("a line of a library's own")
for step in ("interpreter", "import", "first_result"):
    print(step, time.monotonic())
q, k, v = (np.load(f"{folder}/{x}.npy").astype(float) for x in "qkv")
p = np.exp(q @ k.swapaxes(-1, -2) / 8)
o = p / p.sum(-1, keepdims=True) @ v
np.save(f"{folder}/o.npy", (o + (name == WRONG)).astype(np.float16))
"""


@pytest.mark.parametrize("wrong", ["flashcore_drv", "PyTorch"])
def test_cold_reports_what_is_wrong_and_what_fails(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE.replace("WRONG", repr(wrong)))
    monkeypatch.setattr(suite_cold, "CASE", TINY)
    monkeypatch.setattr(suite_cold, "SCRIPT", script)
    monkeypatch.setattr(suite_cold, "PEERS", {"PyTorch": "numpy", "JAX": "numpy"})  # as if it were installed
    first = run("cold", device)["rows"][-1]
    if wrong == "flashcore_drv":
        assert first["ours"]["wrong"].startswith("an error of 1.0")
        assert first["peers"] == {}
    else:
        assert first["ours"]["seconds"] > 0
        assert first["peers"]["PyTorch"]["wrong"].startswith("an error of 1.0")
        assert first["peers"]["JAX"] == {"refused": "no GPU"}


def test_cold_waits_only_so_long(device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "fake.py"
    script.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(suite_cold, "CASE", TINY)
    monkeypatch.setattr(suite_cold, "SCRIPT", script)
    monkeypatch.setattr(suite_cold, "TIMEOUT", 0.2)
    assert run("cold", device, peers=())["rows"][-1]["ours"] == {"wrong": "no result within 0.2 s"}


# ---- a wheel


WHEEL_INFO = {
    "METADATA": "Metadata-Version: 2.1\nName: flashcore-drv\nVersion: 9\nRequires-Dist: not-there\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "flashcore_drv/__init__.py,,\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel of a package of our name that is empty."""
    path = tmp_path / "flashcore_drv-9-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("flashcore_drv/__init__.py", "")
        for name, text in WHEEL_INFO.items():
            file.writestr(f"flashcore_drv-9.dist-info/{name}", text)
    return path


@pytest.mark.parametrize("origin", ["flashcore_drv.__file__", "'/elsewhere/flashcore_drv/__init__.py'", ""])
def test_cold_of_a_wheel_imports_what_is_in_it(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wheel: Path, origin: str
) -> None:
    script = tmp_path / "fake.py"
    said = f"import flashcore_drv; assert not hasattr(flashcore_drv, 'attention'); print('from', {origin})"
    script.write_text(FAKE.replace("WRONG", "None") + (said if origin else ""))
    monkeypatch.setattr(suite_cold, "CASE", TINY)
    monkeypatch.setattr(suite_cold, "SCRIPT", script)
    monkeypatch.setenv("PYTHONPATH", str(suite_cold.HOME))
    first = run("cold", device, peers=(), wheel=wheel)["rows"][-1]["ours"]
    if origin.startswith("flash"):
        assert first["seconds"] > 0
    else:
        elsewhere = origin.strip("'") or None
        assert first == {"wrong": f"the package was imported from {elsewhere}, not from the wheel"}


def test_the_environment_of_a_wheel_has_no_trace_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    home, other = suite_cold.HOME, Path("/other")
    monkeypatch.setenv("PYTHONPATH", f"{other}:{home}")
    monkeypatch.setenv("FLASHCORE_BUILD", str(home / "build"))
    of_wheel, of_tree = suite_cold.environment(Path("/site")), suite_cold.environment(None)
    assert of_wheel["PYTHONPATH"] == "/site:/other"
    assert "FLASHCORE_BUILD" not in of_wheel
    assert str(home) in of_tree["PYTHONPATH"].split(":")


def test_a_wheel_that_pip_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x-1-py3-none-any.whl").write_text("")
    with pytest.raises(SystemExit, match="cannot be installed"):
        suite_cold.install(tmp_path / "x-1-py3-none-any.whl", str(tmp_path / "site"))


def test_size_has_a_row_of_the_wheel(device: Device, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_size, "PEERS", {})
    rows = {row["id"]: row["ours"] for row in run("size", device, wheel=wheel)["rows"]}
    assert rows["wheel"] == {"bytes": wheel.stat().st_size, "packages": {wheel.name: wheel.stat().st_size}}
    assert rows["installed"]["bytes"] > 10**5


def test_a_process_that_leaves_a_step_out_is_not_timed(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE.replace("WRONG", "None").replace('"import", ', ""))
    monkeypatch.setattr(suite_cold, "CASE", TINY)
    monkeypatch.setattr(suite_cold, "SCRIPT", script)
    assert run("cold", device, peers=())["rows"][-1]["ours"] == {"wrong": "the process says nothing of import"}


# ---- arrays of others


class Lent:
    """An array on the GPU of somebody else's package."""

    def __init__(self, array: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__


def test_host_calls_attention_on_the_arrays_of_others(
    small_host: None, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []

    class Stream(contextlib.nullcontext):  # type: ignore[type-arg]
        def __init__(self, handle: int) -> None:
            super().__init__()
            entered.append(handle)

    package = types.SimpleNamespace(
        asarray=Lent,
        cuda=types.SimpleNamespace(ExternalStream=Stream),
        default_backend=lambda: "gpu",
        device_put=lambda x: Lent(DeviceArray.from_numpy(x, device)),
        block_until_ready=lambda x: device.synchronize(),
    )
    monkeypatch.setattr(peers, "require", lambda name, distribution: package)
    (row,) = run("host", device, peers=())["rows"]
    for way in ("one_shot_cupy", "one_shot_jax"):
        assert row["ours"][way]["us"] > 0
    assert len(entered) == 1
    assert entered[0] != 0


def test_host_times_the_second_family_where_it_is(
    small_host: None, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"ours": suite_host.SM_80_IMPL, "sm_90": suite_host.SM_80_IMPL}
    monkeypatch.setattr(suite_host, "impls", lambda device: found)
    (row,) = run("host", device, peers=())["rows"]
    assert {"planned_sm_90", "one_shot_sm_90", "graph_replay_sm_90"} < row["ours"].keys()
    assert row["ours"]["planned_sm_90"]["times_bare"] > 0


# ---- sizes


def install(folder: Path, name: str, size: int, requires: tuple[str, ...] = (), recorded: bool = True) -> None:
    """A distribution of one file, as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    lines = [f"Requires-Dist: {text}" for text in requires]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *lines, ""]))
    (folder / f"{name}.bin").write_bytes(b"x" * size)
    if recorded:
        (info / "RECORD").write_text(f"{name}.bin,,\n{name}.bin,,\ngone.bin,,\n")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path whose packages require each other."""
    monkeypatch.syspath_prepend(tmp_path)
    install(
        tmp_path, "size-a", 1, ("Size_B>=1", "size-c; extra == 'cuda'", "size-d; python_version < '3'", "size-none")
    )
    install(tmp_path, "size-b", 10, ("size-a[cuda]",))
    install(tmp_path, "size-c", 100)
    install(tmp_path, "size-d", 1000)
    install(tmp_path, "size-e", 10000, recorded=False)
    return tmp_path


def test_size_follows_requirements(installed: Path) -> None:
    assert suite_size.closure(["size-c"]) == {"size-c": 100}
    assert suite_size.closure(["size-a"]) == {"size-a": 1, "size-b": 10, "size-c": 100}
    with pytest.raises(suite_size.UnrecordedError, match="size-e"):
        suite_size.closure(["size-e"])


def test_size_compares_with_peers(device: Device, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_size, "PEERS", {"PyTorch": "size-b", "FA4": "size-e", "JAX": "size-none"})
    monkeypatch.setattr(suite_size, "FOUND_AT_RUN_TIME", {"PyTorch": r"size-[d-z]"})
    monkeypatch.setattr(suite_size, "closure", lambda roots: {"size-e": 5} if "size-e" in roots else {"x": 2})
    found = run("size", device)
    (row,) = found["rows"]
    assert row["peers"]["PyTorch"]["packages"] == {"size-e": 5}  # a root that is only found, not required
    assert row["ours"]["packages"]["flashcore-drv"] > 10**5
    assert row["ours"]["bytes"] == sum(row["ours"]["packages"].values())
    assert "absent" in found["peers"]["JAX"]


def test_size_of_a_peer_without_records_is_not_guessed(
    device: Device, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_size, "PEERS", {"FA4": "size-e"})
    assert "size-e" in run("size", device)["peers"]["FA4"]["absent"]


@pytest.mark.parametrize(
    ("suite", "change", "message"),
    [
        ("host", lambda row: row["ours"].pop("planned"), "lacks planned"),
        ("host", lambda row: row["ours"]["planned"].pop("times_bare"), "lacks times_bare"),
        ("host", lambda row: row["peers"]["FA2"].update(ratio=3.0), "does not hold the median"),
        ("cold", lambda row: row["ours"].update(seconds=-1.0), "above 0"),
        ("cold", lambda row: row["peers"].update(other={"wrong": "x"}), "not among the peers"),
        ("size", lambda row: row["ours"].update(bytes=3), "not the sum"),
        ("size", lambda row: row["peers"]["FA2"].pop("ratio"), "lacks ratio"),
    ],
)
def test_the_schema_refuses(suite: str, change: Any, message: str) -> None:
    from test_report import samples

    found = samples()[suite]
    change(found["rows"][-1])
    with pytest.raises(results.InvalidResults, match=message):
        results.validate(found)


def test_the_version_of_what_is_not_installed_is_its_absence(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_cold, "CASE", TINY)

    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(suite_cold, "version", version)
    assert run("cold", device)["peers"]["JAX"] == {"absent": "jax is not installed"}


def test_bench_runs_size_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "bench.py", "size", "--quick", "--json", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-size.json")
    assert results.load(path)["rows"]
