"""What users call: NumPy and device arrays, layouts, streams, what is left behind, and kernels that do not fit."""

import gc
import itertools
import os
import re
import shutil
import threading

import numpy as np
import pytest
from support import Exported, context, emulated_driver, recorded, run_python, used_bytes

import flashcore_drv as fc
from flashcore_drv import abi, api, images, reference
from flashcore_drv.catalog import CATALOG
from flashcore_drv.dtypes import BF16, F16
from flashcore_drv.runtime import DeviceArray, Stream, driver, is_emulated

B, H, HK, SQ, SK, D = 2, 4, 2, 24, 40, 32
DTYPES = pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
LAYOUTS = pytest.mark.parametrize("layout", ["bshd", "bhsd"])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


def heads_first(x, layout):
    return x.swapaxes(1, 2) if layout == "bshd" else x


def make(layout="bshd", dtype=F16, seed=0):
    """Independent q, k, v with a mean."""
    rng = np.random.default_rng(seed)
    shapes = [(B, H, SQ, D), (B, HK, SK, D), (B, HK, SK, D)]
    arrays = [(rng.standard_normal(s, np.float32) + 0.5).astype(dtype.to_numpy()) for s in shapes]
    return [np.ascontiguousarray(heads_first(x, layout)) for x in arrays]


def to_device(*arrays):
    return [DeviceArray.from_numpy(x) for x in arrays]


def assert_right(out, lse, arrays, layout="bshd", dtype=F16, scale=D**-0.5, causal=False):
    q, k, v = (heads_first(x, layout) for x in arrays)
    true = reference.truth(q, k, v, scale, causal)
    same = reference.same_maths(q, k, v, dtype, scale, causal)
    assert out.dtype == dtype.to_numpy()
    verdict = reference.judge(heads_first(out, layout), true.o, same.o, dtype.mantissa_bits)
    assert verdict.ok, verdict
    if lse is not None:
        assert (lse.shape, lse.dtype) == ((B, H, SQ), np.float32)
        assert reference.judge(lse, true.lse, same.lse, 23).ok


@pytest.fixture
def expected(device):
    """The result for make(), from NumPy to NumPy."""
    return fc.attention(*make())


# ---- NumPy arrays


@DTYPES
@LAYOUTS
@CAUSAL
def test_numpy_arrays(device, dtype, layout, causal) -> None:
    arrays = make(layout, dtype)
    before = [x.tobytes() for x in arrays]
    out, lse = fc.attention(*arrays, layout=layout, causal=causal, return_lse=True)
    assert isinstance(out, np.ndarray)
    assert isinstance(lse, np.ndarray)
    assert out.shape == arrays[0].shape
    assert_right(out, lse, arrays, layout, dtype, causal=causal)
    assert [x.tobytes() for x in arrays] == before
    alone = fc.attention(*arrays, layout=layout, causal=causal)
    assert alone.tobytes() == out.tobytes()


@pytest.mark.parametrize("scale", [0.01, 1, np.float32(0.5), np.float16(0.25)], ids=repr)
def test_scales(device, scale) -> None:
    arrays = make()
    assert_right(fc.attention(*arrays, softmax_scale=scale), None, arrays, scale=float(scale))


def test_the_implementation_can_be_named(device, expected) -> None:
    arrays = make()
    assert_right(fc.attention(*arrays, impl="unfused"), None, arrays)
    for impl in ("auto", "flash"):
        assert np.array_equal(fc.attention(*arrays, impl=impl), expected)


def test_numpy_out(device, expected) -> None:
    out = np.full_like(expected, np.nan)
    assert fc.attention(*make(), out=out) is out
    assert np.array_equal(out, expected)
    found, lse = fc.attention(*make(), out=out, return_lse=True)
    assert found is out
    assert lse.shape == (B, H, SQ)


def test_numpy_out_with_gaps(device, expected) -> None:
    whole = np.full((*expected.shape, 2), 7, np.float16)
    out = whole[..., 1]
    assert fc.attention(*make(), out=out) is out
    assert np.array_equal(out, expected)
    assert (whole[..., 0] == 7).all()


def test_numpy_arrays_with_any_strides(device, expected) -> None:
    q, k, v = make()
    backwards = np.ascontiguousarray(q[::-1, :, ::-1, ::-1])[::-1, :, ::-1, ::-1]
    fortran = np.asfortranarray(k)
    gaps = np.stack([v, v], -1)[..., 0]
    gaps.flags.writeable = False
    assert np.array_equal(fc.attention(backwards, fortran, gaps), expected)


def test_numpy_arrays_that_repeat_themselves(device) -> None:
    q, k, v = make()
    k, v = (np.broadcast_to(x[:, :, :1], x.shape) for x in (k, v))
    assert np.array_equal(fc.attention(q, k, v), fc.attention(q, k[:, :, :1], v[:, :, :1]))


def test_layouts_are_views_of_one_another(device, expected) -> None:
    q, k, v = (x.swapaxes(1, 2) for x in make())
    assert np.array_equal(fc.attention(q, k, v, layout="bhsd").swapaxes(1, 2), expected)


# ---- device arrays


@LAYOUTS
def test_device_arrays_stay_on_the_device(device, layout) -> None:
    arrays = make(layout)
    out, lse = fc.attention(*to_device(*arrays), layout=layout, return_lse=True)
    assert isinstance(out, DeviceArray)
    assert isinstance(lse, DeviceArray)
    wanted, wanted_lse = fc.attention(*arrays, layout=layout, return_lse=True)
    assert np.array_equal(out.to_numpy(), wanted)
    assert np.array_equal(lse.to_numpy(), wanted_lse)


def test_device_out(device, expected) -> None:
    out = DeviceArray.from_numpy(np.full_like(expected, np.nan))
    assert fc.attention(*to_device(*make()), out=out) is out
    assert np.array_equal(out.to_numpy(), expected)


def test_strided_device_arrays(device, expected) -> None:
    """Heads-first memory seen as bshd, in one buffer for q, k and v, and an output with gaps."""
    q, k, v = (x.swapaxes(1, 2).reshape(-1) for x in make())
    whole = DeviceArray.from_numpy(np.concatenate([q, k, v]))
    views = [
        whole.as_strided((B, SQ, H, D), (H * SQ * D, D, SQ * D, 1)),
        whole.as_strided((B, SK, HK, D), (HK * SK * D, D, SK * D, 1), q.size),
        whole.as_strided((B, SK, HK, D), (HK * SK * D, D, SK * D, 1), q.size + k.size),
    ]
    room = DeviceArray.from_numpy(np.full(2 * expected.size, 7, np.float16))
    fc.attention(*views, out=room.as_strided(expected.shape, (2 * SQ * H * D, 2 * H * D, 2 * D, 1), D))
    rows = room.to_numpy().reshape(B, SQ, H, 2, D)
    assert np.array_equal(rows[:, :, :, 1], expected)
    assert (rows[:, :, :, 0] == 7).all()


def test_arrays_of_other_libraries(device, expected) -> None:
    exported = [Exported(x) for x in to_device(*make())]
    result = fc.attention(*exported)
    assert isinstance(result, DeviceArray)
    assert np.array_equal(result.to_numpy(), expected)
    memory = DeviceArray.from_numpy(np.zeros_like(expected))
    out = Exported(memory, strides=None)
    assert fc.attention(*exported, out=out) is out
    assert np.array_equal(memory.to_numpy(), expected)


@pytest.mark.parametrize("which", ["input", "output"])
def test_work_of_a_producer_is_waited_for(device, expected, which) -> None:
    q, k, v = to_device(*make())
    out = DeviceArray.from_numpy(np.zeros_like(expected))
    with Stream(device) as producer, Stream(device) as consumer:
        arrays = [q, k, v, out]
        which = {"input": 1, "output": 3}[which]
        arrays[which] = Exported(arrays[which], stream=producer.handle)
        with recorded() as calls:
            fc.attention(*arrays[:3], out=arrays[3], stream=consumer)
        records = [args for name, args in calls if name == "cuEventRecord"]
        waits = [args for name, args in calls if name == "cuStreamWaitEvent"]
        assert [args[1] for args in records] == [producer.handle]
        assert [args[0] for args in waits] == [consumer.handle]
        assert records[0][0] == waits[0][1]
        assert calls.names().index("cuStreamWaitEvent") < calls.names().index("cuLaunchKernelEx")
        assert calls.count("cuEventCreate") == calls.count("cuEventDestroy") == 1
        consumer.synchronize()


def test_the_callers_own_stream_is_not_waited_for(device) -> None:
    q, k, v = to_device(*make())
    with Stream(device) as stream:
        with recorded() as calls:
            fc.attention(Exported(q, stream=stream.handle), k, v, stream=stream)
        assert calls.count("cuEventRecord", "cuStreamWaitEvent") == 0
        stream.synchronize()


# ---- streams


class Foreign:
    def __init__(self, handle) -> None:
        self.ptr = handle


@pytest.mark.parametrize("place", ["host", "device"])
@pytest.mark.parametrize(
    "kind", [lambda s: s, lambda s: s.handle, lambda s: Foreign(s.handle)], ids=["Stream", "int", "ptr"]
)
def test_everything_is_queued_in_the_callers_stream(device, expected, place, kind) -> None:
    arrays = make() if place == "host" else to_device(*make())
    with Stream(device) as stream:
        with recorded() as calls:
            result = fc.attention(*arrays, stream=kind(stream))
        ordered = ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemAllocAsync", "cuMemFreeAsync", "cuStreamSynchronize")
        for name, args in calls:
            if name in ordered:
                assert int(args[-1]) == stream.handle, name
        launches = [args[0] for name, args in calls if name == "cuLaunchKernelEx"]
        assert [int(config.hStream) for config in launches] == [stream.handle]
        waits = ("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize", "cuMemcpyDtoHAsync", "cuMemcpyDtoH")
        assert (calls.count(*waits) == 0) == (place == "device"), "waits where it need not, or the other way round"
        found = result if place == "host" else result.to_numpy(stream=stream)
        assert np.array_equal(found, expected)


def test_results_outlive_their_stream(device, expected) -> None:
    with Stream(device) as stream:
        result = fc.attention(*to_device(*make()), stream=stream)
        stream.synchronize()
    assert np.array_equal(result.to_numpy(), expected)
    result.free()


# ---- small inputs beside q, k and v


def side_inputs():
    return {
        "alibi_slopes": np.linspace(0.1, 0.5, B * H, dtype=np.float32).reshape(B, H),
        "bias": np.linspace(-1, 1, H * SK, dtype=np.float32).reshape(1, H, 1, SK),
        "sinks": np.linspace(-1, 1, H, dtype=np.float32),
        "seqused_k": np.array([SK, 10], np.int32),
    }


@pytest.fixture
def expected_with_sides(device):
    return fc.attention(*make(), **side_inputs())


def test_numpy_side_inputs_go_up_in_one_copy_that_is_not_waited_for(device, expected_with_sides) -> None:
    arrays = to_device(*make())
    with Stream(device) as stream:
        with recorded() as calls:
            result = fc.attention(*arrays, stream=stream, **side_inputs())
        copies = [args for name, args in calls if name == "cuMemcpyHtoDAsync"]
        assert [int(args[-1]) for args in copies] == [stream.handle]
        assert calls.count("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize") == 0
        kept = calls.count("cuMemAllocAsync") - calls.count("cuMemFreeAsync")
        assert kept == 1, "the side inputs are still there"
        assert np.array_equal(result.to_numpy(stream=stream), expected_with_sides)


def test_numpy_side_inputs_may_change_when_the_call_has_returned(device, expected_with_sides) -> None:
    sides = side_inputs()
    result = fc.attention(*to_device(*make()), **sides)
    for x in sides.values():
        x.fill(0)
    assert np.array_equal(result.to_numpy(), expected_with_sides)


@pytest.mark.parametrize("kind", [lambda x: x, Exported], ids=["DeviceArray", "exported"])
def test_side_inputs_on_the_device(device, expected_with_sides, kind) -> None:
    arrays, sides = to_device(*make()), {n: kind(DeviceArray.from_numpy(x)) for n, x in side_inputs().items()}
    with recorded() as calls:
        result = fc.attention(*arrays, **sides)
    assert calls.count("cuMemcpyHtoDAsync", "cuStreamSynchronize") == 0
    assert np.array_equal(result.to_numpy(), expected_with_sides)


def test_numpy_side_inputs_of_any_strides(device, expected_with_sides) -> None:
    sides = side_inputs()
    sides["alibi_slopes"] = np.asfortranarray(sides["alibi_slopes"])
    sides["bias"] = np.broadcast_to(sides["bias"], (B, H, SQ, SK))
    sides["sinks"] = np.stack([sides["sinks"]] * 2, 1)[:, 0]
    sides["seqused_k"] = sides["seqused_k"][::-1].copy()[::-1]
    for arrays in (make(), to_device(*make())):
        found = fc.attention(*arrays, **sides)
        assert np.array_equal(found if isinstance(found, np.ndarray) else found.to_numpy(), expected_with_sides)


@pytest.mark.parametrize("name", ["alibi_slopes", "bias", "sinks", "seqused_k"])
def test_a_side_inputs_producer_is_waited_for(device, expected_with_sides, name) -> None:
    with Stream(device) as producer, Stream(device) as consumer:
        sides = side_inputs()
        sides[name] = Exported(DeviceArray.from_numpy(sides[name]), stream=producer.handle)
        with recorded() as calls:
            result = fc.attention(*to_device(*make()), stream=consumer, **sides)
        assert [args[1] for kind, args in calls if kind == "cuEventRecord"] == [producer.handle]
        assert [args[0] for kind, args in calls if kind == "cuStreamWaitEvent"] == [consumer.handle]
        assert np.array_equal(result.to_numpy(stream=consumer), expected_with_sides)


@LAYOUTS
def test_a_head_dim_of_its_own_for_v(device, layout) -> None:
    q, k, v = make(layout)
    out = fc.attention(q, k, v, layout=layout)
    for columns in (8, 24):
        found = fc.attention(q, k, np.ascontiguousarray(v[..., :columns]), layout=layout)
        assert found.shape == (*q.shape[:3], columns)
        np.testing.assert_allclose(found.astype(float), out[..., :columns].astype(float), atol=2**-9)


# ---- packed sequences and merging

FAILING = ("cuMemAllocAsync", "cuMemcpyHtoDAsync", "cuLaunchKernelEx", "cuStreamSynchronize", "cuMemcpyDtoHAsync",
           "cuMemFreeAsync", "cuCtxPushCurrent")  # fmt: skip


def packed():
    """q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k with rows that belong to no sequence."""
    q, k, v = make()
    starts = np.array([0, SQ, 2 * SQ - 3], np.int32), np.array([0, SK, 2 * SK - 5], np.int32)
    return [*(x.reshape(-1, *x.shape[2:]) for x in (q, k, v)), *starts, SQ, SK]


@pytest.mark.parametrize("place", ["host", "device"])
def test_packed_sequences_on_the_device(device, place) -> None:
    """Nothing is waited for, wherever the lengths are; rows of no sequence are left as they are."""
    arrays = packed()
    expected, expected_lse = fc.attention_varlen(*arrays, return_lse=True)
    there, starts = to_device(*arrays[:3]), arrays[3:5] if place == "host" else to_device(*arrays[3:5])
    end = int(arrays[3][-1])
    out = DeviceArray.from_numpy(np.full_like(expected, 7))
    with Stream(device) as stream:
        with recorded() as calls:
            found, lse = fc.attention_varlen(*there, *starts, SQ, SK, out=out, return_lse=True, stream=stream)
        assert found is out
        assert calls.count("cuStreamSynchronize", "cuCtxSynchronize") == 0
        stream.synchronize()
    assert np.array_equal(out.to_numpy()[:end], expected[:end])
    assert (out.to_numpy()[end:] == 7).all()
    for head in range(H):
        row = lse.as_strided((end,), (1,), head * len(expected)).to_numpy()
        assert np.array_equal(row, expected_lse[head, :end])


@pytest.mark.parametrize("name", FAILING)
def test_an_error_in_the_middle_of_packed_sequences_leaves_nothing_behind(device, name) -> None:
    emulated = emulated_driver()
    arrays = packed()
    with recorded() as calls:
        expected = fc.attention_varlen(*arrays, sinks=np.zeros(H, np.float32))
    for call in range(1, calls.count(name) + 1):
        out = np.full_like(expected, 7)
        before = used_bytes(device)
        unknown = emulated.CUresult.CUDA_ERROR_UNKNOWN
        with emulated.inject(name, call=call, result=unknown), pytest.raises(fc.DriverError):
            fc.attention_varlen(*arrays, sinks=np.zeros(H, np.float32), out=out)
        assert (out == 7).all() or np.array_equal(out[: arrays[3][-1]], expected[: arrays[3][-1]]), "half a result"
        if name != "cuMemFreeAsync":
            assert used_bytes(device) == before


@LAYOUTS
@pytest.mark.parametrize("place", ["host", "device"])
def test_out_of_a_merge(device, layout, place) -> None:
    q, k, v = make(layout)
    keys = 1 if layout == "bshd" else 2
    halves = [np.split(x, [13], keys) for x in (k, v)]
    parts = [x for kv in zip(*halves) for x in fc.attention(q, *kv, layout=layout, return_lse=True)]
    expected, expected_lse = fc.attention_merge(*parts, layout=layout)
    out = np.full_like(expected, np.nan)
    if place == "device":
        parts, (out,) = to_device(*parts), to_device(out)
    found, lse = fc.attention_merge(*parts, layout=layout, out=out)
    assert found is out
    if place == "device":
        found, lse = found.to_numpy(), lse.to_numpy()
    assert np.array_equal(found, expected)
    assert np.array_equal(lse, expected_lse)


# ---- stages


@DTYPES
@LAYOUTS
@CAUSAL
@pytest.mark.parametrize("place", ["host", "device"])
def test_the_stages_make_attention(device, dtype, layout, causal, place) -> None:
    q, k, v = arrays = make(layout, dtype)
    if place == "device":
        q, k, v = to_device(*arrays)
    s = fc.unfused.qk(q, k, layout=layout)
    p, lse = fc.unfused.softmax(s, dtype=dtype.to_numpy(), causal=causal, return_lse=True)
    o = fc.unfused.pv(p, v, layout=layout)
    kind = np.ndarray if place == "host" else DeviceArray
    assert all(isinstance(x, kind) for x in (s, p, lse, o))
    assert [x.shape for x in (s, p, lse, o)] == [(B, H, SQ, SK), (B, H, SQ, SK), (B, H, SQ), arrays[0].shape]
    assert [x.dtype for x in (s, p, lse, o)] == [np.float32, dtype.to_numpy(), np.float32, dtype.to_numpy()]
    whole, whole_lse = fc.attention(*arrays, layout=layout, causal=causal, return_lse=True, impl="unfused")
    found, found_lse = (o, lse) if place == "host" else (o.to_numpy(), lse.to_numpy())
    assert found.tobytes() == whole.tobytes()
    assert found_lse.tobytes() == whole_lse.tobytes()


@pytest.mark.parametrize("place", ["host", "device"])
def test_out_of_the_stages(device, place) -> None:
    q, k, v = make()
    s, p, o = np.empty((B, H, SQ, SK), np.float32), np.empty((B, H, SQ, SK), np.float16), np.empty_like(q)
    wanted = fc.attention(q, k, v, softmax_scale=0.3, impl="unfused")
    if place == "device":
        q, k, v, s, p, o = to_device(q, k, v, s, p, o)
    assert fc.unfused.qk(q, k, softmax_scale=0.3, out=s) is s
    assert fc.unfused.softmax(s, out=p) is p
    assert fc.unfused.pv(p, v, out=o) is o
    assert np.array_equal(o if place == "host" else o.to_numpy(), wanted)


# ---- what is left behind


def test_a_call_leaves_nothing_on_the_device(device) -> None:
    arrays = make()
    there = to_device(*arrays)
    fc.attention(*arrays)
    gc.collect()
    before = used_bytes(device)
    for _ in range(3):
        fc.attention(*arrays, return_lse=True)
        fc.unfused.pv(fc.unfused.softmax(fc.unfused.qk(*arrays[:2])), arrays[2])
        fc.attention_varlen(*packed(), return_lse=True)
        fc.attention_merge(
            *fc.attention(*arrays, return_lse=True, **side_inputs()), *fc.attention(*arrays, return_lse=True)
        )
        with recorded() as calls:
            out, lse = fc.attention(*there, return_lse=True)
        kept = calls.count("cuMemAlloc", "cuMemAllocAsync") - calls.count("cuMemFree", "cuMemFreeAsync")
        assert kept == 2, "the workspace is still there"
        out.free()
        lse.free()
    assert used_bytes(device) == before


def test_the_callers_context_stays_current(device) -> None:
    seen = []

    def run():
        arrays = make()
        seen.append(context())
        fc.attention(*arrays)
        seen.append(context())
        with pytest.raises(fc.Unsupported):
            fc.attention(*(np.ones((1, 1, 1, 264), np.float16),) * 3)
        seen.append(context())
        with device.active():
            fc.attention(*arrays)
            seen.append(context() - int(device.context))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [0, 0, 0, 0]


@pytest.mark.parametrize("name", FAILING)
def test_an_error_in_the_middle_leaves_nothing_behind(device, expected, name) -> None:
    emulated = emulated_driver()
    arrays = make()
    with recorded() as calls:
        fc.attention(*arrays, return_lse=True)
    times = calls.count(name)
    assert times
    for call in range(1, times + 1):
        out = np.full_like(expected, 7)
        before, current = used_bytes(device), context()
        unknown = emulated.CUresult.CUDA_ERROR_UNKNOWN
        with emulated.inject(name, call=call, result=unknown) as fault, pytest.raises(fc.DriverError) as failure:
            fc.attention(*arrays, out=out, return_lse=True)
        assert fault.struck == 1
        assert (failure.value.call, failure.value.name) == (name, "CUDA_ERROR_UNKNOWN")
        assert context() == current
        assert (out == 7).all() or np.array_equal(out, expected), "half a result"
        if name != "cuMemFreeAsync":  # what the driver does not take back stays
            assert used_bytes(device) == before
    assert np.array_equal(fc.attention(*arrays), expected)


def result_or_error(arrays):
    try:
        return fc.attention(*arrays)
    except fc.DriverError as error:
        return error


def test_memory_that_runs_out(device, expected) -> None:
    emulated = emulated_driver()
    arrays = to_device(*make())
    gc.collect()
    before = used_bytes(device)
    refusals = 0
    for spare in range(0, 200_000, 10_000):
        in_use = device_memory_in_use(emulated)
        with emulated.memory_limit(in_use + spare):
            found = result_or_error(arrays)
            if isinstance(found, DeviceArray):
                assert np.array_equal(found.to_numpy(), expected)
                found.free()
            else:
                refusals += 1
                assert found.name == "CUDA_ERROR_OUT_OF_MEMORY"
                assert "Remedy: free device memory" in str(found)
        assert used_bytes(device) == before
    assert 0 < refusals < 20


def device_memory_in_use(emulated) -> int:
    with fc.Device.current().active():
        _, free, total = emulated.cuMemGetInfo()
    return total - free


def test_threads_may_call(device, expected) -> None:
    images._load.cache_clear()  # all of them want the kernels to be loaded
    api.CACHE.clear()
    found = []
    threads = [threading.Thread(target=lambda: found.append(fc.attention(*make()))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 4
    assert all(np.array_equal(x, expected) for x in found)


# ---- kernels on disk

QK = next(s for s in CATALOG if s.stem == "qk_wmma_f16_d64_sm89")
SOFTMAX = next(s for s in CATALOG if s.stem == "softmax_f16_w1_sm89")


@pytest.fixture
def build(device, tmp_path, monkeypatch):
    """A copy of the compiled kernels that attention loads; a function gives the file of a kernel in it."""
    source = images.build_folder()
    shutil.copytree(source / ("ptx" if is_emulated() else "cubin"), tmp_path / ("ptx" if is_emulated() else "cubin"))
    monkeypatch.setenv("FLASHCORE_BUILD", str(tmp_path))
    for cache in (images._load.cache_clear, api.CACHE.clear):
        cache()
    yield lambda spec: images.image_path(spec, device.arch, is_emulated())
    for cache in (images._load.cache_clear, api.CACHE.clear):
        cache()


def refused(error, *words):
    before = used_bytes(fc.Device.current())
    with pytest.raises(error) as refusal:
        fc.attention(*make(), impl="unfused")
    message = str(refusal.value)
    assert not [w for w in words if str(w) not in message], message
    assert "make cubin" in message, "no remedy"
    assert used_bytes(fc.Device.current()) == before


def test_the_folder_can_be_chosen(device, build, tmp_path, expected) -> None:
    assert images.build_folder() == tmp_path
    assert build(QK).is_relative_to(tmp_path)
    assert np.array_equal(fc.attention(*make()), expected)


def test_a_missing_kernel(device, build) -> None:
    path = build(QK)
    path.unlink()
    refused(fc.KernelImageError, f"{path} is missing", "built for")


def test_a_folder_without_kernels(device, build, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLASHCORE_BUILD", str(tmp_path / "nothing"))
    refused(fc.KernelImageError, tmp_path / "nothing", "is missing (built for: nothing)")


def test_a_stale_kernel(device, build) -> None:
    path = build(SOFTMAX)
    current, stale = (n.to_bytes(8, "little") for n in (abi.ABI_HASH, abi.ABI_HASH ^ 0xFF))
    image = path.read_bytes()
    if is_emulated():
        current, stale = (", ".join(map(str, n)).encode() for n in (current, stale))
    assert image.count(current) == 1
    path.write_bytes(image.replace(current, stale))
    refused(fc.KernelImageError, f"{path} is stale", f"{abi.ABI_HASH:#018x}", f"{abi.ABI_HASH ^ 0xFF:#018x}")


def test_a_kernel_of_another_name(device, build) -> None:
    shutil.copy(build(SOFTMAX), build(QK))
    refused((fc.KernelImageError, fc.DriverError), "NOT_FOUND")


@pytest.mark.parametrize("image", [b"", b"nonsense", b".version 8.0\nnonsense"])
def test_a_damaged_kernel(device, build, image) -> None:
    build(QK).write_bytes(image)
    refused((fc.KernelImageError, fc.DriverError), "cuModuleLoadData")


def test_a_kernel_with_other_parameters(device, build) -> None:
    if not is_emulated():
        pytest.skip("changes PTX, which only the emulator loads")
    path, size = build(QK), abi.UNFUSED_PARAMS.size
    text, changes = re.subn(rf"(\.param .*_param_0)\[{size}\]", rf"\1[{size + 8}]", path.read_text())
    assert changes == 1
    path.write_text(text)
    refused(fc.KernelImageError, f"{path} takes {size + 8} bytes of parameters", f"UnfusedParams of {size}")


def test_a_cubin_for_another_gpu(device, build) -> None:
    if not is_emulated():
        pytest.skip("changes PTX, which only the emulator loads")
    path = build(QK)
    text = path.read_text()
    assert text.count(".target sm_89") == 1
    path.write_text(text.replace(".target sm_89", ".target sm_120"))
    refused((fc.KernelImageError, fc.DriverError), "INVALID_PTX", "PTX for sm_120 cannot run on sm_89")


def test_the_remedy_builds_what_is_missing(tmp_path) -> None:
    call = "fc.attention(*(np.ones((1, 1, 1, 64), np.float16),) * 3, impl='unfused')"
    code = f"import numpy as np, flashcore_drv as fc; {call}"
    env = {"FLASHCORE_DRIVER": "emulator", "FLASHCORE_BUILD": str(tmp_path)}
    for arch, ptx in (("sm_80", 80), ("sm_86", 80), ("sm_89", 89), ("sm_90", 89)):
        ran = run_python("-c", code, FLASHCORE_EMULATED_ARCH=arch, **env)
        assert ran.returncode == 1
        last = ran.stderr.splitlines()[-1]
        assert f"qk_wmma_f16_d64_sm{ptx}.ptx is missing" in last
        assert last.endswith(f"make cubin ARCHS={ptx}")


def test_a_kernel_is_read_once(device, build, monkeypatch) -> None:
    fc.attention(*make())
    shutil.rmtree(os.environ["FLASHCORE_BUILD"])
    with recorded() as calls:
        fc.attention(*make())
    assert calls.count("cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute") == 0


def test_dynamic_shared_memory_is_asked_for_at_load(device, build) -> None:
    attribute = driver.module().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    with recorded() as calls:
        fc.attention(*make())
    asked = {int(args[0]): args[2] for name, args in calls if name == "cuFuncSetAttribute" and args[1] == attribute}
    launched = {int(args[1]): args[0].sharedMemBytes for name, args in calls if name == "cuLaunchKernelEx"}
    assert asked == launched
    order = [name for name in calls.names() if name in ("cuFuncSetAttribute", "cuLaunchKernelEx")]
    assert [name for name, _ in itertools.groupby(order)] == ["cuFuncSetAttribute", "cuLaunchKernelEx"]
