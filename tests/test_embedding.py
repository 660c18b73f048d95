"""Inside somebody else's process: threads, forks, the end of the interpreter, and every fault with what comes after."""

import contextlib
import gc
import shutil
import threading

import numpy as np
import pytest
from support import emulated_driver, run_python, start_emulator, used_bytes

import flashcore_drv as fc
from flashcore_drv import abi, api, images
from flashcore_drv.emulator import driver as emulated
from flashcore_drv.runtime import Device, DeviceArray, Stream, driver, errors, is_emulated

B, H, S, D = 1, 2, 20, 32
RESULT = emulated.CUresult


def make(seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((B, S, H, D), np.float32) + 0.5).astype(np.float16) for _ in "qkv"]


def up(*arrays):
    return [DeviceArray.from_numpy(x) for x in arrays]


def poisoned():
    made = DeviceArray.empty((B, S, H, D), np.float16)
    made.fill_bytes(0xFF)
    made.device.synchronize()
    return made


# ---- many threads


def resident_bytes() -> int:
    """Memory of this process that is in use (/proc, Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def stress(device, threads: int, calls: int, streams: int) -> list[str]:
    """Calls of one plan and of attention() by threads at once on shared streams, results looked at; what is wrong.

    A thread's calls go to three outputs in turn, full of NaN before, from inputs that its neighbours do not have.
    """
    wrong: list[str] = []
    plan, shared = fc.plan_attention(*make()), [Stream(device) for _ in range(streams)]
    expected = [fc.attention(*make(seed)) for seed in range(5)]
    start, period = threading.Barrier(threads), max(3, calls // 50)

    def run(number: int) -> None:
        stream = shared[number % streams]
        wanted, there, outs = expected[number % 5], up(*make(number % 5)), [poisoned() for _ in range(3)]
        start.wait()
        with device.active():
            for turn in range(calls):
                which = turn % 3
                if (turn + turn // 3) % 2:
                    plan(*there, outs[which], stream=stream)
                else:
                    fc.attention(*there, out=outs[which], stream=stream)
                if turn % period == period - 1:
                    for i, out in enumerate(outs):
                        if not np.array_equal(out.to_numpy(stream=stream), wanted):
                            wrong.append(f"thread {number}, call {turn}, output {i}")
                        out.fill_bytes(0xFF, stream)
            stream.synchronize()

    workers = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    for stream in shared:
        stream.close()
    return wrong


def test_threads_on_shared_streams_make_no_mistake_and_leave_nothing(device) -> None:
    calls = 3 if is_emulated() else 10_000
    assert stress(device, 16, 3, 4) == []  # what is kept for good is there now
    gc.collect()
    before, resident = used_bytes(device), resident_bytes()
    assert stress(device, 16, calls, 4) == []
    gc.collect()
    assert used_bytes(device) == before
    if not is_emulated():  # whose own memory varies with the order of threads
        assert resident_bytes() - resident < 16 << 20


def test_what_a_plan_remembers_is_bounded(device) -> None:
    """Calls at addresses that are new every time; the launches are stubbed out."""
    plan, kept = fc.plan_attention(*make()), api.CACHE.again
    room = DeviceArray.from_numpy(np.zeros(B * S * H * D + 8 * 3000, np.float16))
    k, v, out = (*up(*make()[1:]), poisoned())
    shape, strides = (B, S, H, D), (S * H * D, H * D, D, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver.module(), "cuLaunchKernelEx", lambda *_: (driver.module().CUresult.CUDA_SUCCESS,))
        for i in range(3000):
            q = room.as_strided(shape, strides, 8 * i)
            plan(q, k, v, out)
            fc.attention(q, k, v, out=out)
    assert 0 < len(plan._rules.prepared.ready) <= 128
    assert 0 < len(plan._rules.calls) <= 128
    assert 0 < len(kept) <= 1024
    assert len(room.buffer._views) < 64, "a buffer notes views that are gone"
    plan(*up(*make()), out)
    assert np.array_equal(out.to_numpy(), fc.attention(*make()))


# ---- fork and the end

START = """
import os, sys, threading, warnings, numpy as np, flashcore_drv as fc
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 of a fork beside threads
x = fc.DeviceArray.from_numpy(np.ones((1, 8, 1, 32), np.float16))
out = fc.DeviceArray.from_numpy(np.ones((1, 8, 1, 32), np.float16))
plan, stream = fc.plan_attention(x, x, x), fc.Stream(fc.Device.current())
with fc.Graph.capture(stream) as graph:
    plan(x, x, x, out, stream=stream)
for _ in range(3):
    plan(x, x, x, out), fc.attention(x, x, x, out=out), graph.replay(stream)
stream.synchronize()
"""


def test_a_forked_process_is_refused_whatever_it_does() -> None:
    code = (
        START
        + """
uses = {
    "plan": lambda: plan(x, x, x, out),
    "plan elsewhere": lambda: plan(x, x, out, x),
    "a new plan": lambda: fc.plan_attention(x, x, x, causal=True),
    "attention": lambda: fc.attention(x, x, x, out=out),
    "replay": lambda: graph.replay(stream),
    "replay by default": lambda: graph.replay(fc.Stream(x.device, 0)),
    "update": lambda: graph.update(plan, x, x, x, out),
    "capture": lambda: fc.Graph.capture(stream).__enter__(),
    "memory": lambda: fc.DeviceArray.empty((1,), np.float16),
    "capsule": lambda: x.__dlpack__(),
    "free": lambda: x.free(),
}
if os.fork() == 0:
    for name, use in uses.items():
        try:
            use()
        except fc.NoDriverError as error:
            if "before this process was forked; start worker processes with spawn" in str(error):
                continue
        print(name, "was not refused")
    sys.stdout.flush()
    os._exit(0)
os.wait()
plan(x, x, x, out)
print("the parent goes on", (out.to_numpy() == 1).all())
"""
    )
    ran = run_python("-c", code)
    assert (ran.stdout, ran.stderr) == ("the parent goes on True\n", "")


ENDINGS = {
    "as it is": "",
    "arrays last": "sys.modules['__main__'].a = x; del x, out",
    "plan and graph kept by a module": "fc.kept = plan, graph, stream, x",
    "a cycle": "class C: pass\nc = C(); c.me = c; c.kept = plan, graph, stream, x, out",
    "at exit, registered first": "import atexit; atexit.register(lambda: (plan(x, x, x, out), graph.replay(stream)))",
    "a destructor that calls": "class C:\n    def __del__(self): plan(x, x, x, out); x.free(); graph.close()\nc = C()",
    "a thread that still calls": "threading.Thread(target=lambda: [plan(x, x, x, out) for _ in range(20)]).start()",
    "a daemon that still calls": "threading.Thread(target=lambda: [plan(x, x, x, out) for _ in iter(int, 1)],"
    " daemon=True).start()",
    "a capsule that lives on": "sys.kept = x.__dlpack__(), out.__dlpack__(max_version=(1, 0)); del x, out",
    "in the middle of a capture": "fc.held = fc.Graph.capture(stream); fc.held.__enter__(); "
    "plan(x, x, x, out, stream=stream)",
    "a capture that is not left": "held = fc.Graph.capture(stream); held.__enter__()",
    "a context that is not left": "held = x.device.active(); held.__enter__()",
    "all closed": "graph.close(); stream.close(); x.free(); out.free()",
    "an exception": "sys.stderr = sys.stdout; raise SystemExit(0)",
    "modules gone first": "for n in [n for n in sys.modules if 'flashcore' in n or 'cuda' in n]: del sys.modules[n]",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_without_a_word(ending) -> None:
    ran = run_python("-c", START + ENDINGS[ending])
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


# ---- faults: each an error of its own, and what works afterwards


@pytest.fixture
def fresh():
    """The emulated driver started over, before and after: a context may be lost in between."""
    emulated_driver()
    start_emulator()
    yield Device.current()
    start_emulator()


def works(plan=None) -> bool:
    """Whether attention is computed right, by a plan too."""
    arrays, out = make(), poisoned()
    expected = fc.attention(*arrays)
    (plan or fc.plan_attention(*arrays))(*up(*arrays), out)
    return np.array_equal(out.to_numpy(), expected)


def test_out_of_memory(fresh) -> None:
    plan, before = fc.plan_attention(*make()), used_bytes(fresh)
    fault = emulated.inject("cuMemAllocAsync", result=RESULT.CUDA_ERROR_OUT_OF_MEMORY)
    words = "Remedy: free device memory or use a smaller problem"
    with fault, pytest.raises(fc.OutOfMemory, match=words) as failure:
        fc.attention(*make())
    assert isinstance(failure.value, fc.DriverError)
    assert used_bytes(fresh) == before
    assert works(plan)


@pytest.mark.parametrize("call", ["plan", "attention", "replay"])
def test_a_launch_error(fresh, call) -> None:
    plan, there, out = fc.plan_attention(*make()), up(*make()), poisoned()
    with Stream(fresh) as stream, fresh.active():
        with fc.Graph.capture(stream) as graph:
            plan(*there, out, stream=stream)
        run, name = {
            "plan": (lambda: plan(*there, out), "cuLaunchKernelEx"),
            "attention": (lambda: fc.attention(*there, out=out), "cuLaunchKernelEx"),
            "replay": (lambda: graph.replay(stream), "cuGraphLaunch"),
        }[call]
        for _ in range(3):  # as new, known by its problem, known by its addresses
            fault = RESULT.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
            with emulated.inject(name, result=fault), pytest.raises(fc.LaunchError, match=name) as failure:
                run()
            assert failure.value.code == int(fault)
            assert np.isnan(out.to_numpy()).all(), "something ran"
            run()
            stream.synchronize()
            assert np.array_equal(out.to_numpy(), fc.attention(*make()))
            out.fill_bytes(0xFF)
            fresh.synchronize()
        graph.close()
    assert works(plan)


@pytest.mark.parametrize(
    "result",
    ["ILLEGAL_ADDRESS", "LAUNCH_FAILED", "MISALIGNED_ADDRESS", "ILLEGAL_INSTRUCTION", "LAUNCH_TIMEOUT",
     "ECC_UNCORRECTABLE"],
)  # fmt: skip
def test_a_context_that_is_lost(fresh, result) -> None:
    """By code of somebody else: every call says so, nothing hangs or crashes, and what is given back only warns."""
    plan, stream = fc.plan_attention(*make()), Stream(fresh)
    given = [*up(*make()), poisoned()]
    with fc.Graph.capture(stream) as graph:
        plan(*given, stream=stream)
    plan(*given), fc.attention(*given[:3], out=given[3])
    code = getattr(RESULT, f"CUDA_ERROR_{result}")
    with (
        emulated.inject("cuStreamSynchronize", result=code, sticky=True),
        pytest.raises(fc.ContextLost, match="the context is lost: restart the process"),
        fresh.active(),
    ):
        stream.synchronize()
    uses = [
        lambda: plan(*given),
        lambda: plan(*given[:3], given[0]),
        lambda: fc.attention(*given[:3], out=given[3]),
        lambda: fc.attention(*make()),
        lambda: graph.replay(stream),
        lambda: graph.update(plan, *given),
        lambda: given[3].to_numpy(),
        lambda: given[0].free(),
        stream.close,
    ]
    for use in uses:
        with pytest.raises(fc.ContextLost) as failure:
            use()
        assert failure.value.name == f"CUDA_ERROR_{result}"
    with contextlib.suppress(fc.ContextLost):  # a driver may be able to
        graph.close()
    with pytest.warns(ResourceWarning, match="not given back to the driver"):
        given.clear()
    start_emulator()
    assert works()


@pytest.fixture
def kernels(fresh, tmp_path, monkeypatch):
    """A copy of the kernel that make() needs: its path."""
    plan = fc.plan_attention(*make())
    (spec,) = plan._rules.prepared.kernels
    path = tmp_path / "ptx" / f"{spec.stem}.ptx"
    path.parent.mkdir()
    shutil.copy(images.image_path(spec, fresh.arch, emulated=True), path)
    monkeypatch.setenv("FLASHCORE_BUILD", str(tmp_path))
    start_emulator()
    return path


ABI, OTHER_ABI = (", ".join(map(str, n.to_bytes(8, "little"))) for n in (abi.ABI_HASH, abi.ABI_HASH ^ 0xFF))
FAULTS = {
    "missing": (lambda path, text: path.unlink(), fc.KernelImageError, "is missing .* build it: make cubin"),
    "empty": (lambda path, text: path.write_text(""), fc.ImageRefused, "cuModuleLoadData failed"),
    "damaged": (lambda path, text: path.write_text(text[: len(text) // 2]), fc.ImageRefused, "make cubin"),
    "of other structs": (
        lambda path, text: path.write_text(text.replace(ABI, OTHER_ABI)),
        fc.KernelImageError,
        "is stale: it was built for ABI .* build it: make cubin",
    ),
    "of another kernel": (
        lambda path, text: path.write_text(text.replace(path.stem, "other")),
        fc.ImageRefused,
        "NOT_FOUND",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_cannot_be_used(kernels, fault) -> None:
    text = kernels.read_text()
    change, error, words = FAULTS[fault]
    change(kernels, text)
    assert not kernels.exists() or kernels.read_text() != text, "nothing was changed, so the test shows nothing"
    there, before = up(*make()), used_bytes(Device.current())
    for call in (lambda: fc.attention(*there), lambda: fc.plan_attention(*there), lambda: fc.attention(*make())):
        with pytest.raises(error, match=words):
            call()
    assert used_bytes(Device.current()) == before
    kernels.write_text(text)
    assert works(), "the failure was remembered"


@pytest.mark.parametrize(("version", "words"), [(12080, "12.8; needed: 13.0"), (11040, "11.4; needed: 13.0")])
def test_a_driver_that_is_too_old(monkeypatch, version, words) -> None:
    emulated_driver()
    driver.module.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(emulated, "cuDriverGetVersion", lambda: (RESULT.CUDA_SUCCESS, version))
            for _ in range(2):
                with pytest.raises(fc.DriverTooOld, match=f"{words} or later. Update NVIDIA's driver"):
                    fc.attention(*make())
        assert works()
    finally:
        driver.module.cache_clear()
        driver.module()


def test_every_error_has_a_class_of_its_own() -> None:
    kinds = [fc.OutOfMemory, fc.LaunchError, fc.ImageRefused, fc.ContextLost]
    assert all(issubclass(x, fc.DriverError) for x in kinds)
    assert issubclass(fc.DriverTooOld, fc.NoDriverError)
    for name, code, kind in (
        ("cuMemAllocAsync", 2, fc.OutOfMemory),
        ("cuLaunchKernelEx", 701, fc.LaunchError),
        ("cuLaunchKernelEx", 700, fc.ContextLost),
        ("cuGraphLaunch", 1, fc.LaunchError),
        ("cuModuleLoadData", 200, fc.ImageRefused),
        ("cuModuleLoadData", 2, fc.OutOfMemory),
        ("cuModuleLoadData", 719, fc.ContextLost),
        ("cuStreamSynchronize", 400, fc.DriverError),
    ):
        assert errors.kind_of(name, code) is kind
