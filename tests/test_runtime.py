"""The layer over the driver: contexts, memory, streams, events, graphs, launches, errors. On the emulator or a GPU."""

import ast
import gc
import re
import struct
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, context, emulated_driver, named, python_says, recorded, run_python, used_bytes

from flashcore_drv.dtypes import BF16
from flashcore_drv.runtime import (
    Buffer,
    Device,
    DeviceArray,
    DriverError,
    Event,
    Graph,
    HandleError,
    Launch,
    Module,
    Stream,
    driver,
    errors,
    is_emulated,
)

FILL = b"""
.version 8.0
.target sm_80
.address_size 64
.visible .const .align 4 .u32 answer = 42;
.visible .entry fill(.param .align 8 .b8 fill_p[16])
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [fill_p];
    ld.param.u32 %r1, [fill_p+8];
    cvta.to.global.u64 %rd1, %rd1;
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %rd2, %r2, 4;
    add.s64 %rd3, %rd1, %rd2;
    st.global.u32 [%rd3], %r1;
    ret;
}
"""


def in_thread(function):
    """The result of a function in a thread of its own, which starts without a context."""
    found = []

    def run():
        try:
            found.append((function(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    result, error = found[0]
    if error is not None:
        raise error
    return result


# ---- contexts


def use_everything(device: Device) -> None:
    """One of each thing that the runtime does."""
    array = DeviceArray.from_numpy(np.arange(12, dtype=np.float32), device)
    with Stream(device) as stream:
        start, end = Event(device), Event(device)
        start.record(stream)
        array.fill_bytes(1, stream)
        end.record(stream)
        stream.wait(start)
        end.synchronize()
        end.elapsed_us(start)
        stream.synchronize()
        with Graph.capture(stream) as graph:
            array.fill_bytes(2, stream)
        graph.replay(stream)
        graph.close()
        array.to_numpy(stream=stream)
        end.close()
        start.close()
    kernel = Module(device, FILL).kernel("fill", 0)
    assert kernel.parameter_bytes > 0
    kernel.attribute("MAX_THREADS_PER_BLOCK")
    array.free()
    device.synchronize()


@pytest.mark.parametrize("current", ["none", "primary", "another"])
def test_the_current_context_is_restored(device, current) -> None:
    def check() -> None:
        if current == "primary":
            driver.call("cuCtxPushCurrent", device.context)
        if current == "another":
            other = driver.call("cuCtxCreate", None, 0, device.handle)
        before = context()
        assert (before == 0) == (current == "none")
        with recorded() as calls:
            use_everything(device)
        assert context() == before
        pushes, pops = calls.count("cuCtxPushCurrent"), calls.count("cuCtxPopCurrent")
        assert pushes == pops
        assert (pushes == 0) == (current == "primary"), "switched without need, or not at all"
        if current == "another":
            driver.call("cuCtxDestroy", other)

    if current == "another" and not hasattr(driver.module(), "cuCtxCreate"):
        pytest.skip("the emulated driver has the primary context only")
    in_thread(check)


def test_the_context_is_restored_after_an_error(device) -> None:
    def check() -> None:
        with pytest.raises(ZeroDivisionError), device.active():
            _ = context() == int(device.context) and 1 / 0
        assert context() == 0
        with pytest.raises(DriverError):
            Module(device, b"nonsense")
        assert context() == 0

    in_thread(check)


def test_activation_nests(device) -> None:
    def check() -> None:
        with device.active():
            with device.active():
                assert context() == int(device.context)
            assert context() == int(device.context)
        assert context() == 0

    in_thread(check)


def test_the_primary_context_is_retained_and_nothing_else(device) -> None:
    _, active = driver.call("cuDevicePrimaryCtxGetState", device.handle)
    assert active
    named = set()
    for path in (ROOT / "flashcore_drv").rglob("*.py"):
        if "emulator" not in path.parts:
            named |= set(re.findall(r"\bcu(?:Ctx|Device)\w+", path.read_text()))
    forbidden = re.compile(r"Create|Destroy|Reset|Release|SetCurrent|SetLimit|SetFlags|SetCacheConfig")
    assert not [name for name in named if forbidden.search(name)]
    assert "cuDevicePrimaryCtxRetain" in named


def test_the_device_of_the_current_context(device) -> None:
    assert in_thread(Device.current) == Device.get(0)
    with device.active():
        assert Device.current() == device


def test_devices_of_one_gpu_are_equal(device) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(Device.get(0))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    found += [Device.get(), Device.get(ordinal=0), Device(0)]
    assert len(set(found)) == 1
    assert all(x == found[0] for x in found)
    assert found[0] != 0


@pytest.mark.parametrize("ordinal", [-1, 1000])
def test_a_device_that_does_not_exist(device, ordinal) -> None:
    with pytest.raises(HandleError, match=f"device {ordinal} does not exist; there are {Device.count()}"):
        Device.get(ordinal)


def test_a_device_describes_itself(device) -> None:
    assert device.arch >= 80
    assert device.name
    assert "\0" not in device.name
    assert device.attribute("WARP_SIZE") == 32
    assert f"sm_{device.arch}" in repr(device)
    with pytest.raises(AttributeError):
        device.attribute("NUMBER_OF_WHEELS")


# ---- memory


def test_free_is_idempotent_and_gives_the_memory_back(device) -> None:
    before = used_bytes(device)
    buffer = Buffer(device, 1000)
    assert used_bytes(device) >= before + 1000
    with recorded() as calls:
        buffer.free()
        buffer.free()
    assert calls.count("cuMemFree", "cuMemFreeAsync") == 1
    assert used_bytes(device) == before


def test_use_after_free_is_our_error(device) -> None:
    array = DeviceArray.from_numpy(np.arange(4, dtype=np.float32), device)
    view = array.as_strided((2,), (2,))
    array.free()
    uses = [
        lambda: array.address,
        lambda: view.address,
        lambda: array.buffer.address,
        lambda: array.to_numpy(),
        lambda: array.copy_from(np.zeros(4, np.float32)),
        lambda: array.fill_bytes(0),
        lambda: array.__cuda_array_interface__,
    ]
    for use in uses:
        with recorded() as calls, pytest.raises(HandleError, match=r"device memory of 16 bytes: used after free\(\)"):
            use()
        assert calls.work() == []


def test_memory_that_is_forgotten_is_freed(device) -> None:
    gc.collect()
    before = used_bytes(device)
    array = DeviceArray.empty((100, 100), np.float32, device)
    view = array.as_strided((10,), (1,))
    del array
    gc.collect()
    assert used_bytes(device) >= before + 40_000, "a view keeps the buffer"
    del view
    gc.collect()
    assert used_bytes(device) == before


def test_the_garbage_collector_is_never_told_of_errors(device, monkeypatch) -> None:
    emulated = emulated_driver()
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    buffer = Buffer(device, 10)
    with emulated.inject("cuMemFreeAsync", result=emulated.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS) as fault:
        del buffer
        gc.collect()
    assert fault.struck == 1
    assert said == []


def test_nothing_and_less_than_nothing(device) -> None:
    empty = DeviceArray.empty((0, 3), np.float16, device)
    assert empty.address
    assert (empty.size, empty.nbytes) == (0, 0)
    empty.copy_from(np.empty((0, 3), np.float16))
    assert empty.to_numpy().shape == (0, 3)
    empty.fill_bytes(0)
    empty.free()
    with pytest.raises(ValueError, match=r"nbytes=-1; allowed: 0 or more"):
        Buffer(device, -1)


def test_without_memory_pools(device, monkeypatch) -> None:
    monkeypatch.setitem(device.__dict__, "has_memory_pools", False)
    with recorded() as calls:
        array = DeviceArray.from_numpy(np.arange(10), device)
        assert (array.to_numpy() == np.arange(10)).all()
        array.free()
    assert (calls.count("cuMemAlloc"), calls.count("cuMemFree")) == (1, 1)
    assert calls.count("cuMemAllocAsync", "cuMemFreeAsync") == 0


def test_memory_outlives_the_stream_it_came_from(device) -> None:
    before = used_bytes(device)
    with Stream(device) as stream:
        array = DeviceArray.from_numpy(np.arange(10), device, stream)
        forgotten = DeviceArray.empty((10,), np.float64, device, stream)
    assert (array.to_numpy() == np.arange(10)).all()
    array.free()
    del forgotten
    gc.collect()
    assert used_bytes(device) == before


def test_memory_outlives_a_stream_of_somebody_else(device) -> None:
    before = used_bytes(device)
    owner = Stream(device)
    array = DeviceArray.empty((10,), np.float64, device, Stream(device, owner.handle))
    forgotten = DeviceArray.empty((10,), np.float64, device, Stream(device, owner.handle))
    owner.close()
    array.free()
    del forgotten
    gc.collect()
    assert used_bytes(device) == before


def test_a_forgotten_stream_is_destroyed(device) -> None:
    with recorded() as calls:
        Stream(device)
        gc.collect()
    assert calls.count("cuStreamDestroy") == 1


def test_memory_of_a_closed_stream_is_refused(device) -> None:
    stream = Stream(device)
    stream.close()
    with pytest.raises(HandleError, match=r"stream: used after close\(\)"):
        DeviceArray.empty((1,), np.float32, device, stream)


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(shape=shapes, dtype=st.sampled_from([np.float16, np.float32, np.uint8, np.int64, BF16.to_numpy()]))
def test_a_copy_comes_back(device, shape, dtype) -> None:
    there = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    array = DeviceArray.from_numpy(there, device)
    back = array.to_numpy()
    assert (back.shape, back.dtype) == (shape, np.dtype(dtype))
    assert back.tobytes() == there.tobytes()
    out = np.empty(shape, dtype)
    assert array.to_numpy(out) is out
    assert out.tobytes() == there.tobytes()
    array.free()


def test_a_copy_of_what_is_not_contiguous(device) -> None:
    there = np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]
    assert np.array_equal(DeviceArray.from_numpy(there, device).to_numpy(), there)


def test_a_copy_refuses_what_does_not_match(device) -> None:
    array = DeviceArray.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3), device)
    for wrong in (np.zeros((3, 2), np.float32), np.zeros(6, np.float32), np.zeros((2, 3)), np.zeros((2, 3), ">f4")):
        words = re.escape(f" has shape {wrong.shape} and dtype {wrong.dtype}; allowed: (2, 3) and float32")
        with pytest.raises(ValueError, match=f"array{words}"):
            array.copy_from(wrong)
        with pytest.raises(ValueError, match=f"out{words}"):
            array.to_numpy(wrong)
    read_only = np.zeros((2, 3), np.float32)
    read_only.flags.writeable = False
    for wrong in (np.zeros((3, 2), np.float32).T, read_only):
        with pytest.raises(ValueError, match="out is not a writeable C-contiguous array"):
            array.to_numpy(wrong)
    with pytest.raises(ValueError, match="a copy needs a C-contiguous device array"):
        array.as_strided((3, 2), (1, 3)).to_numpy()
    assert array.to_numpy().ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_views_share_their_buffer(device) -> None:
    array = DeviceArray.from_numpy(np.arange(24, dtype=np.int32), device)
    row = array.as_strided((2, 6), (6, 1), 6).as_strided((6,), (1,), 6)
    assert row.buffer is array.buffer
    assert row.address == array.address + 12 * 4
    assert row.to_numpy().tolist() == list(range(12, 18))
    row.copy_from(-np.ones(6, np.int32))
    assert array.to_numpy().tolist() == [*range(12), *[-1] * 6, *range(18, 24)]
    row.free()
    with pytest.raises(HandleError):
        _ = array.address


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    strides=st.lists(st.integers(-8, 8), min_size=3, max_size=3),
    first=st.integers(0, 4),
    offset=st.integers(-6, 24),
)
def test_a_view_stays_inside_the_buffer(device, shape, strides, first, offset) -> None:
    elements = 20
    whole = DeviceArray.empty((elements,), np.int16, device)
    base = whole.as_strided((elements - first,), (1,), first)
    shape, strides = tuple(shape), tuple(strides[: len(shape)])
    reached = [first + offset + sum(i * s for i, s in zip(index, strides)) for index in np.ndindex(*shape)]
    if all(0 <= at < elements for at in reached) and first + offset >= 0:
        view = base.as_strided(shape, strides, offset)
        assert (view.shape, view.strides) == (shape, strides)
        assert view.address == whole.address + 2 * (first + offset)
    else:
        with pytest.raises(ValueError, match=re.escape(f"shape={shape}, strides={strides}, offset={offset} reach")):
            base.as_strided(shape, strides, offset)
    whole.free()


def test_fill(device) -> None:
    array = DeviceArray.empty((4,), np.float32, device)
    array.fill_bytes(0xFF)
    assert np.isnan(array.to_numpy()).all()


def test_the_cuda_array_interface(device) -> None:
    array = DeviceArray.from_numpy(np.arange(12, dtype=np.float16).reshape(3, 4), device).as_strided((2, 2), (4, 1), 5)
    interface = array.__cuda_array_interface__
    assert interface["version"] == 3
    assert interface["typestr"] == "<f2"
    assert interface["shape"] == (2, 2)
    assert interface["strides"] == (8, 2)
    assert interface["data"] == (array.address, False)
    assert not hasattr(DeviceArray.empty((1,), BF16.to_numpy(), device), "__cuda_array_interface__")


# ---- streams and events


class Protocol:
    def __init__(self, handle) -> None:
        self.handle = handle

    def __cuda_stream__(self):
        return 0, self.handle


class ProtocolProperty:
    def __init__(self, handle) -> None:
        self.__cuda_stream__ = (0, handle)


class Torch:
    def __init__(self, handle) -> None:
        self.cuda_stream = handle


class CuPy:
    def __init__(self, handle) -> None:
        self.ptr = handle


@pytest.mark.parametrize("kind", [int, Protocol, ProtocolProperty, Torch, CuPy])
def test_streams_of_others_are_used_and_not_owned(device, kind) -> None:
    with Stream(device) as mine:
        other = Stream.of(device, kind(mine.handle))
        assert other.handle == mine.handle
        with recorded() as calls:
            other.close()
        assert calls == []
        mine.synchronize()


def test_no_stream_is_the_legacy_default_stream(device) -> None:
    assert Stream.of(device, None).handle == 0
    mine = Stream(device)
    assert Stream.of(device, mine) is mine
    mine.close()


@pytest.mark.parametrize("wrong", ["0", -1, 0.0, True, object(), np.int64(0), Torch("x"), CuPy(-5), [0]], ids=named)
def test_what_is_no_stream_is_refused(device, wrong) -> None:
    with pytest.raises(HandleError) as refusal:
        Stream.of(device, wrong)
    assert f"stream={wrong!r} is not a stream; allowed: None, an int handle" in str(refusal.value)


def test_a_stream_of_another_gpu_is_refused(device) -> None:
    other = object.__new__(Device)
    other.__dict__ |= {"ordinal": 7, "name": "Other", "arch": 80}
    with pytest.raises(HandleError, match=r"stream belongs to <Device 7: Other, sm_80>, the arrays are on <Device 0"):
        Stream.of(device, Stream(other, 0))


def test_a_closed_stream_is_our_error(device) -> None:
    stream, event = Stream(device), Event(device)
    assert stream.lasting
    with recorded() as calls:
        stream.close()
        stream.close()
    assert calls.count("cuStreamDestroy") == 1
    assert not stream.lasting
    for use in (stream.synchronize, lambda: stream.wait(event), lambda: event.record(stream), lambda: stream.handle):
        with recorded() as calls, pytest.raises(HandleError, match=r"stream: used after close\(\)"):
            use()
        assert calls.count("cuStreamSynchronize", "cuStreamWaitEvent", "cuEventRecord") == 0
    event.close()


def test_a_closed_event_is_our_error(device) -> None:
    event, other = Event(device), Event(device)
    with recorded() as calls:
        event.close()
        event.close()
    assert calls.count("cuEventDestroy") == 1
    stream = Stream(device, 0)
    uses = [
        event.synchronize,
        lambda: event.record(stream),
        lambda: stream.wait(event),
        lambda: event.elapsed_us(other),
        lambda: other.elapsed_us(event),
    ]
    for use in uses:
        with pytest.raises(HandleError, match=r"event: used after close\(\)"):
            use()
    other.close()


def test_a_stream_waits_for_an_event(device) -> None:
    array = DeviceArray.from_numpy(np.zeros(1000, np.uint8), device)
    with Stream(device) as writer, Stream(device) as reader:
        event = Event(device)
        array.fill_bytes(7, writer)
        event.record(writer)
        if is_emulated():  # which starts work as late as it may
            assert not array.to_numpy(stream=reader).any()
        reader.wait(event)
        assert (array.to_numpy(stream=reader) == 7).all()
        event.close()


def test_events_measure(device) -> None:
    with Stream(device) as stream:
        array = DeviceArray.empty((1000,), np.uint8, device, stream)
        start, end = Event(device), Event(device)
        start.record(stream)
        array.fill_bytes(1, stream)
        end.record(stream)
        end.synchronize()
        assert 0 <= end.elapsed_us(start) < 1e6
        assert end.elapsed_us(start) == -start.elapsed_us(end)


# ---- graphs


def test_a_graph_runs_when_it_is_replayed(device) -> None:
    array = DeviceArray.from_numpy(np.zeros(8, np.uint8), device)
    with Stream(device) as stream:
        with Graph.capture(stream) as graph:
            array.fill_bytes(5, stream)
            with pytest.raises(HandleError, match="graph: replayed before its capture ended"):
                graph.replay(stream)
        assert not array.to_numpy(stream=stream).any(), "captured work has run"
        for _ in range(2):
            graph.replay(stream)
            assert (array.to_numpy(stream=stream) == 5).all()
            array.copy_from(np.zeros(8, np.uint8), stream)
        with recorded() as calls:
            graph.close()
            graph.close()
        assert calls.count("cuGraphExecDestroy") == 1
        with pytest.raises(HandleError, match=r"graph: .* after close\(\)"):
            graph.replay(stream)


def test_an_error_ends_a_capture(device) -> None:
    array = DeviceArray.from_numpy(np.zeros(8, np.uint8), device)
    with Stream(device) as stream:
        with recorded() as calls, pytest.raises(ZeroDivisionError), Graph.capture(stream):
            _ = array.fill_bytes(5, stream), 1 / 0
        assert calls.count("cuStreamEndCapture") == calls.count("cuGraphDestroy") == 1
        assert not array.to_numpy(stream=stream).any()


def test_what_is_dropped_in_a_capture_does_not_end_it(device) -> None:
    """Nor is it freed at every replay. The README's second capture takes the name of the first one's graph."""
    array = DeviceArray.from_numpy(np.zeros(8, np.uint8), device)
    with Stream(device) as stream:
        dropped = [DeviceArray.empty((8,), np.uint8, device, where) for where in (stream, None)]
        stream.synchronize()
        for value in (5, 6):
            with Graph.capture(stream) as graph:  # drops the one before
                array.fill_bytes(value, stream)
                dropped.clear()
                gc.collect()
            for _ in range(2):
                graph.replay(stream)
            assert (array.to_numpy(stream=stream) == value).all()
        freed = DeviceArray.empty((8,), np.uint8, device, stream)
        stream.synchronize()
        with Graph.capture(stream) as last:
            array.fill_bytes(7, stream)
            graph.close()
            freed.free()
        for _ in range(2):
            last.replay(stream)
        assert (array.to_numpy(stream=stream) == 7).all()


def test_what_cannot_be_captured_says_so(device) -> None:
    with Stream(device) as stream, pytest.raises(DriverError) as refusal, Graph.capture(stream):
        stream.synchronize()
    assert refusal.value.name.startswith("CUDA_ERROR_STREAM_CAPTURE")
    words = r"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED.*Remedy: .*before the capture"
    with pytest.raises(DriverError, match=words), Graph.capture(Stream(device, 0)):
        pass
    assert DeviceArray.from_numpy(np.arange(3)).to_numpy().tolist() == [0, 1, 2], "the context is not usable"


# ---- kernels


@pytest.fixture
def fill(device):
    """A kernel that stores a word into 32 words, and the bytes of its parameters."""
    return Module(device, FILL).kernel("fill", 0), lambda address, value: struct.pack("<QI4x", address, value)


def test_a_launch(device, fill) -> None:
    kernel, params = fill
    array = DeviceArray.from_numpy(np.zeros(40, np.uint32), device)
    launch = Launch(kernel, 1, 32, params(array.address, 9))
    with Stream(device) as stream, device.active():
        launch(stream)
        launch.params[8] = 1  # too late for the launch above
        assert array.to_numpy(stream=stream).tolist() == [9] * 32 + [0] * 8
        launch(stream)
        assert array.to_numpy(stream=stream).tolist() == [1] * 32 + [0] * 8


def test_a_launch_keeps_its_parameters(device, fill) -> None:
    kernel, params = fill
    array = DeviceArray.from_numpy(np.zeros(32, np.uint32), device)
    launches = [Launch(kernel, 1, n, params(array.address, n)) for n in range(1, 33)]
    gc.collect()
    with device.active():
        for launch in reversed(launches):
            launch(Stream(device, 0))
    assert array.to_numpy().tolist() == [*range(1, 33)]


def test_a_kernel_says_what_it_takes(device, fill) -> None:
    kernel, _ = fill
    assert kernel.parameter_bytes == 16
    assert 32 <= kernel.attribute("MAX_THREADS_PER_BLOCK") <= 1024


def test_a_variable_of_a_module(device) -> None:
    module = Module(device, FILL)
    assert int.from_bytes(module.read_global("answer"), "little") == 42
    with pytest.raises(DriverError, match="cuModuleGetGlobal failed: CUDA_ERROR_NOT_FOUND"):
        module.read_global("question")
    with pytest.raises(DriverError, match="cuModuleGetFunction failed: CUDA_ERROR_NOT_FOUND"):
        module.kernel("question", 0)


# ---- errors


def test_a_driver_error_says_everything(device) -> None:
    with pytest.raises(DriverError) as failure:
        DeviceArray.empty((1 << 55,), np.uint8, device)
    error = failure.value
    result = driver.module().CUresult.CUDA_ERROR_OUT_OF_MEMORY
    text = driver.module().cuGetErrorString(result)[1].decode()
    assert (error.name, error.code) == ("CUDA_ERROR_OUT_OF_MEMORY", int(result))
    assert error.call in ("cuMemAllocAsync", "cuMemAlloc")
    assert str(error).startswith(f"{error.call} failed: CUDA_ERROR_OUT_OF_MEMORY ({int(result)}): {text}")
    assert str(error).endswith("Remedy: free device memory or use a smaller problem")
    assert DeviceArray.from_numpy(np.arange(3), device).to_numpy().tolist() == [0, 1, 2]


def test_an_error_without_a_remedy_has_none() -> None:
    error = DriverError("cuCall", "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", 217, "peer access")
    assert str(error) == "cuCall failed: CUDA_ERROR_PEER_ACCESS_UNSUPPORTED (217): peer access"


@pytest.mark.parametrize("name", errors._REMEDIES)
def test_a_remedy_is_for_an_error_that_exists(name) -> None:
    from cuda.bindings.driver import CUresult

    code = getattr(CUresult, name)
    assert str(DriverError("cuCall", name, int(code), "text")).endswith(f"text. Remedy: {errors._REMEDIES[name]}")


@pytest.mark.parametrize("image", [b"nonsense", b"", b".version 8.0\n.target sm_80\nnonsense"])
def test_a_damaged_image(device, image) -> None:
    with pytest.raises(DriverError, match=r"cuModuleLoadData failed: CUDA_ERROR_\w+ \(\d+\): .*Remedy: .*make cubin"):
        Module(device, image)


# ---- the choice of the driver; import; fork

BLOCKED = """
import importlib, pkgutil, sys, types

class Driver(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"CUDA work at import: {name}")

for name in ("cuda", "cuda.bindings", "cuda.bindings.driver"):
    sys.modules[name] = Driver(name)
sys.modules["flashcore_drv.emulator"] = None
import flashcore_drv
for module in pkgutil.walk_packages(flashcore_drv.__path__, "flashcore_drv.", onerror=lambda name: None):
    if not module.name.startswith("flashcore_drv.emulator"):
        importlib.import_module(module.name)
print(sum(name.startswith("flashcore_drv") for name in sys.modules))
"""


def test_importing_does_no_cuda_work() -> None:
    assert int(python_says(BLOCKED)) > 15
    ran = run_python("-c", BLOCKED + "flashcore_drv.Device.get(0)", FLASHCORE_DRIVER="cuda")
    assert ran.returncode != 0
    assert "CUDA work at import: cuInit" in ran.stderr, "the blocked driver was not asked, so the test shows nothing"


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
SAY_DRIVER = (
    "from flashcore_drv.runtime import Device, is_emulated; Device.get(0); print(is_emulated(), Device.count())"
)


def test_the_emulator_can_be_chosen() -> None:
    ran = run_python("-c", SAY_DRIVER, FLASHCORE_DRIVER="emulator")
    assert (ran.stdout, ran.stderr) == ("True 1\n", "")


def test_without_a_gpu_the_emulator_is_used_and_that_is_said_once() -> None:
    ran = run_python("-c", SAY_DRIVER, FLASHCORE_DRIVER="auto", **NO_GPU)
    assert ran.stdout == "True 1\n"
    assert ran.stderr == "flashcore_drv: no CUDA driver or GPU here; kernels run in the emulator (slow)\n"


def test_cuda_without_a_gpu_is_refused() -> None:
    ran = run_python("-c", SAY_DRIVER, FLASHCORE_DRIVER="cuda", **NO_GPU)
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert "NoDriverError: FLASHCORE_DRIVER=cuda, but" in last
    assert "install NVIDIA's driver" in last
    assert "FLASHCORE_DRIVER=emulator" in last


@pytest.mark.parametrize("choice", ["CUDA", "gpu", ""])
def test_an_unknown_driver_is_refused(choice) -> None:
    ran = run_python("-c", SAY_DRIVER, FLASHCORE_DRIVER=choice)
    assert ran.returncode == 1
    assert f"NoDriverError: FLASHCORE_DRIVER={choice}; allowed: auto, cuda, emulator" in ran.stderr.splitlines()[-1]


def test_a_forked_process_is_refused() -> None:
    code = """
import os
from flashcore_drv.runtime import Device, NoDriverError
device = Device.get(0)
pid = os.fork()
if pid == 0:
    try:
        device.synchronize()
    except NoDriverError as error:
        os._exit(42 if "forked" in str(error) and "spawn" in str(error) else 1)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
device.synchronize()
"""
    assert python_says(code) == "42\n"


def test_a_fork_before_the_first_use_is_fine() -> None:
    code = """
import os
from flashcore_drv.runtime import Device
pid = os.fork()
Device.get(0).synchronize()
if pid == 0:
    os._exit(42)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert python_says(code) == "42\n"


# ---- what the packages know of each other

ATTENTION = {"attention", "softmax", "seqlen", "causal", "scores", "qk", "pv", "lse"}


def imported(path):
    """Absolute names of the modules that a file imports, also inside functions and through importlib."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{a.name}" for a in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def sources(package):
    return sorted((ROOT / "flashcore_drv" / package).rglob("*.py"))


def test_runtime_and_emulator_stand_alone() -> None:
    for package, others in (("runtime", {"flashcore_drv.emulator.driver"}), ("emulator", set())):
        assert sources(package)
        for path in sources(package):
            ours = {name for name in imported(path) if name.split(".")[0] == "flashcore_drv"} - others
            outside = [name for name in ours if not f"{name}.".startswith(f"flashcore_drv.{package}.")]
            assert not outside, f"{path} imports {outside}"


@pytest.mark.parametrize("package", ["runtime", "emulator"])
def test_nothing_there_is_of_attention(package) -> None:
    for path in sources(package):
        for node in ast.walk(ast.parse(path.read_text())):
            for field in ("id", "attr", "arg", "name"):
                name = getattr(node, field, None)
                if isinstance(name, str):
                    assert not ATTENTION.intersection(name.lower().split("_")), f"{path}: {name}"
