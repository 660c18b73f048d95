"""Arrays and streams of other libraries: what is taken without a copy, what is given, and what is refused."""

import functools
import gc
import itertools
import sys
import types
import weakref

import ml_dtypes
import numpy as np
import pytest
from support import Exported, recorded

import flashcore_drv as fc
from flashcore_drv import interop
from flashcore_drv.runtime import DeviceArray, HandleError, Stream, dlpack, driver
from flashcore_drv.runtime.hostmemory import words_at

B, H, HK, SQ, SK, D = 1, 4, 2, 20, 33, 32
DTYPES = [np.float16, ml_dtypes.bfloat16]
LEGACY = 1


def make(dtype=np.float16, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, SQ, H, D), (B, SK, HK, D), (B, SK, HK, D)
    return [(rng.standard_normal(s, np.float32) + 0.5).astype(dtype) for s in shapes]


def up(*arrays):
    return [DeviceArray.from_numpy(x) for x in arrays]


class ByDlpack:
    """An object that has DLPack and nothing else; it notes what it is asked."""

    def __init__(self, array, old=False) -> None:
        self.array, self.old, self.asked = array, old, []

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **asked):
        if self.old and "max_version" in asked:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.asked.append(asked)
        return self.array.__dlpack__(**asked)


class AsCupy:
    """What CuPy's arrays have; the interface names the current stream."""

    current = LEGACY

    def __init__(self, array) -> None:
        self.array = array
        self.data = types.SimpleNamespace(ptr=array.address)
        self.shape, self.dtype = array.shape, array.dtype
        self.strides = tuple(s * array.dtype.itemsize for s in array.strides)

    @property
    def _c_contiguous(self):
        return self.strides == tuple(s * self.dtype.itemsize for s in _strides(self.shape))

    @property
    def __cuda_array_interface__(self):
        return {**interface_of(self.array), "stream": self.current}

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **asked):
        return self.array.__dlpack__(**asked)


def interface_of(array):
    """A CUDA Array Interface, of bfloat16 too, as CuPy and PyTorch have it: with a type string of nothing."""
    if array.dtype != ml_dtypes.bfloat16:
        return array.__cuda_array_interface__
    seen = DeviceArray(array.buffer, array.shape, np.dtype(np.int16), array.strides, array.offset)
    return {**seen.__cuda_array_interface__, "typestr": "<V2"}


class AsTorch:
    """What PyTorch's tensors have."""

    def __init__(self, array) -> None:
        self.array = array
        self.dtype = f"torch.{array.dtype}"

    @property
    def __cuda_array_interface__(self):
        return {**interface_of(self.array), "version": 2, "stream": None}

    def data_ptr(self):
        return self.array.address

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **asked):
        return self.array.__dlpack__(**asked)


class AsJax(AsTorch):
    """What JAX's arrays have: an interface that is read-only and names no stream, and whether they are computed."""

    def __init__(self, array, computed=True) -> None:
        super().__init__(array)
        self.computed, self.asked, self.aval = computed, [], (array.shape, array.dtype)

    data_ptr = None

    def unsafe_buffer_pointer(self):
        return self.array.address

    def is_ready(self):
        return self.computed

    @property
    def __cuda_array_interface__(self):
        interface = self.array.__cuda_array_interface__  # none of bfloat16
        return {**interface, "data": (interface["data"][0], True), "version": 2, "stream": None}

    def __dlpack__(self, **asked):
        if asked["stream"] == -1:
            raise RuntimeError("INTERNAL: CUDA error: CUDA_ERROR_INVALID_HANDLE: invalid resource handle")
        self.asked.append(asked)
        return self.array.__dlpack__(**asked)


AsJax.__module__ = "jaxlib._jax"


class AsStridedMemoryView:
    """What a StridedMemoryView of cuda.core has."""

    is_device_accessible = True

    def __init__(self, array, readonly=False) -> None:
        self.array, self.readonly = array, readonly
        self.ptr, self.shape, self.dtype = array.address, array.shape, array.dtype
        self.strides = (
            None if array.strides == (array * 0 if False else tuple(_strides(array.shape))) else array.strides
        )


def _strides(shape):
    return [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]


KINDS = {
    "dlpack": ByDlpack,
    "dlpack-old": lambda x: ByDlpack(x, old=True),
    "cupy": AsCupy,
    "torch": AsTorch,
    "jax": AsJax,
    "jax-waiting": lambda x: AsJax(x, computed=False),
    "cuda.core": AsStridedMemoryView,
}


# ---- arrays in


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["f16", "bf16"])
def test_arrays_are_taken_where_they_are(device, kind, dtype) -> None:
    expected = fc.attention(*make(dtype))
    there, out = up(*make(dtype)), DeviceArray.from_numpy(np.zeros_like(expected))
    given = [KINDS[kind](x) for x in there]
    for call in range(3):  # the first prepares, the second knows its problem, the third its addresses
        out.fill_bytes(0xFF)
        result = out if "jax" in kind else KINDS[kind](out)
        with recorded() as calls:
            assert fc.attention(*given, out=result) is result
        assert calls.count("cuMemAllocAsync", "cuMemcpyHtoDAsync", "cuStreamSynchronize") == 0
        assert np.array_equal(out.to_numpy(), expected), call
    made = fc.attention(*given)
    assert isinstance(made, DeviceArray)
    assert np.array_equal(made.to_numpy(), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["f16", "bf16"])
def test_a_plan_takes_them_too(device, kind, dtype) -> None:
    expected, there = fc.attention(*make(dtype)), up(*make(dtype))
    given, out = [KINDS[kind](x) for x in there], DeviceArray.from_numpy(np.zeros((B, SQ, H, D), dtype))
    plan = fc.plan_attention(*given)
    for check in (False, False, True):
        out.fill_bytes(0xFF)
        plan(*given, out if "jax" in kind else KINDS[kind](out), check=check)
        assert np.array_equal(out.to_numpy(), expected)


@pytest.mark.parametrize("kind", [ByDlpack, AsCupy, AsStridedMemoryView])
def test_strides_are_those_of_the_array(device, kind) -> None:
    q, k, v = make()
    expected = fc.attention(q, k, v)
    wide = DeviceArray.from_numpy(np.concatenate([q, np.full_like(q, np.nan)], -1))
    view = wide.as_strided(q.shape, (SQ * H * 2 * D, H * 2 * D, 2 * D, 1))
    assert np.array_equal(fc.attention(kind(view), *up(k, v)).to_numpy(), expected)
    odd = wide.as_strided(q.shape, (SQ * H * 2 * D, H * 2 * D, 2 * D, 2))
    with pytest.raises(fc.InvalidArgument, match=r"q has strides .* allowed: a last stride of 1"):
        fc.attention(kind(odd), *up(k, v))


def test_kinds_can_be_mixed(device) -> None:
    """Every pair of kinds for q and out beside DeviceArrays: none spoils what is remembered for another."""
    expected = fc.attention(*make())
    q, k, v = up(*make())
    out = DeviceArray.from_numpy(np.zeros_like(expected))
    kinds = [lambda x: x, Exported, AsCupy, ByDlpack]
    for _, first, last in itertools.product(range(2), kinds, kinds):
        out.fill_bytes(0xFF)
        fc.attention(first(q), k, AsCupy(v), out=last(out))
        assert np.array_equal(out.to_numpy(), expected)


def test_an_array_that_changed_its_shape_is_another(device) -> None:
    """Known addresses are not enough: what an array of CuPy is can be changed in place."""
    q, k, v = make()
    there, out = [AsCupy(x) for x in up(q, k, v)], AsCupy(DeviceArray.from_numpy(np.zeros_like(q)))
    for _ in range(3):
        fc.attention(*there, out=out)
    shape = (B, SQ // 2, H * 2, D)
    for x in (there[0], out):
        x.shape, x.strides = shape, tuple(2 * s for s in _strides(shape))
        x.array = x.array.as_strided(shape, tuple(_strides(shape)))
    fc.attention(*there, out=out)
    assert np.array_equal(out.array.to_numpy(), fc.attention(q.reshape(shape), k, v))
    there[0].dtype = np.dtype(np.int16)
    there[0].array = DeviceArray(there[0].array.buffer, shape, np.dtype(np.int16), tuple(_strides(shape)))
    with pytest.raises(fc.InvalidArgument, match="q has dtype int16"):
        fc.attention(*there, out=out)


# ---- who waits for whom


def test_the_stream_that_dlpack_is_told(device) -> None:
    there, out = up(*make()), DeviceArray.from_numpy(np.zeros((B, SQ, H, D), np.float16))
    with Stream(device) as stream:
        for given, told in ((None, 1), (0, 1), (1, 1), (2, 2), (stream, stream.handle), (stream.handle, stream.handle)):
            q = ByDlpack(there[0])
            fc.attention(q, *there[1:], out=out, stream=given)
            assert [x["stream"] for x in q.asked] == [told]
        q = ByDlpack(there[0])
        fc.plan_attention(q, *there[1:])(q, *there[1:], out, stream=stream)
        assert {x["stream"] for x in q.asked} == {-1}, "a plan waits for nobody"
        stream.synchronize()


def test_an_array_of_jax_that_is_not_computed_is_waited_for_by_the_stream(device) -> None:
    there, out = up(*make()), DeviceArray.from_numpy(np.zeros((B, SQ, H, D), np.float16))
    with Stream(device) as stream:
        for computed in (True, True, True, False):
            q = AsJax(there[0], computed)
            with recorded() as calls:
                fc.attention(q, *there[1:], out=out, stream=stream)
            assert calls.count("cuStreamWaitEvent") == (not computed)
            assert [x["stream"] for x in q.asked] == ([] if computed else [stream.handle])
        stream.synchronize()


def test_the_current_stream_of_cupy_is_waited_for(device, monkeypatch) -> None:
    there, out = [AsCupy(x) for x in up(*make())], AsCupy(DeviceArray.from_numpy(np.zeros((B, SQ, H, D), np.float16)))
    with Stream(device) as theirs, Stream(device) as ours:
        for _ in range(3):
            for current, used, waits in ((LEGACY, None, 0), (LEGACY, ours, 1), (theirs.handle, theirs, 0)):
                monkeypatch.setattr(AsCupy, "current", current)
                with recorded() as calls:
                    fc.attention(*there, out=out, stream=used)
                assert (calls.count("cuStreamWaitEvent") > 0) == bool(waits)
        ours.synchronize()
        theirs.synchronize()


def test_the_current_stream_of_cupy_is_asked_for_without_an_interface(device, monkeypatch) -> None:
    """A call that is known again asks the library itself, whose legacy default stream is 0."""
    current = types.SimpleNamespace(ptr=0)
    library = types.SimpleNamespace(cuda=types.SimpleNamespace(get_current_stream=lambda: current))
    monkeypatch.setitem(sys.modules, "like_cupy", library)

    class Theirs(AsCupy):
        __module__ = "like_cupy"
        shown = 0

        @property
        def __cuda_array_interface__(self):
            Theirs.shown += 1
            return {**interface_of(self.array), "stream": current.ptr or LEGACY}

    there, out = [Theirs(x) for x in up(*make())], Theirs(DeviceArray.from_numpy(np.zeros((B, SQ, H, D), np.float16)))
    with Stream(device) as theirs, Stream(device) as ours:
        for ptr, used, waits in (
            (0, None, 0),
            (0, 1, 0),
            (theirs.handle, theirs, 0),
            (theirs.handle, ours, 1),
            (0, ours, 1),
        ):
            current.ptr = ptr
            for _ in range(2):  # the first prepares, the second remembers where the arrays are
                fc.attention(*there, out=out, stream=used)
            before = Theirs.shown
            with recorded() as calls:
                fc.attention(*there, out=out, stream=used)
            assert (calls.count("cuStreamWaitEvent") > 0) == bool(waits)
            assert (Theirs.shown > before) == bool(waits), "only a wait takes a closer look"
        ours.synchronize()
        theirs.synchronize()


class Core:
    """A stream of cuda.core."""

    def __init__(self, handle) -> None:
        self.handle = handle

    def __cuda_stream__(self):
        return 0, self.handle


def test_streams_are_taken_and_given_by_protocol(device) -> None:
    with Stream(device) as stream:
        assert stream.__cuda_stream__() == (0, stream.handle)
        plan, there = fc.plan_attention(*make()), up(*make())
        out = DeviceArray.from_numpy(np.zeros((B, SQ, H, D), np.float16))
        for given in (Core(stream.handle), stream):
            for call in (functools.partial(plan, *there, out), functools.partial(fc.attention, *there, out=out)):
                with device.active(), recorded() as calls:
                    call(stream=given)
                assert [int(args[0].hStream) for name, args in calls if name == "cuLaunchKernelEx"] == [stream.handle]
        stream.synchronize()
    with pytest.raises(HandleError, match=r"used after close\(\)"):
        stream.__cuda_stream__()
    for call in (lambda: plan(*there, out, stream=stream), lambda: fc.attention(*there, out=out, stream=stream)):
        with pytest.raises((HandleError, fc.InvalidArgument), match=r"stream: used after close\(\)"):
            call()


# ---- arrays out


ALL_DTYPES = [np.float16, np.float32, np.int32, np.uint8, np.int64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
              ml_dtypes.float8_e5m2]  # fmt: skip


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda x: np.dtype(x).name)
@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 3)])
def test_a_capsule_says_what_the_array_is(device, dtype, version) -> None:
    whole = DeviceArray.from_numpy(np.zeros((4, 6, 8), dtype))
    array = whole.as_strided((3, 2, 4), (48, 16, 2), 9)
    capsule = array.__dlpack__(max_version=version)
    newer = np.lib.NumpyVersion(np.__version__) >= "2.1.0" and version is not None and version[0] >= 1
    assert ("dltensor_versioned" in repr(capsule)) == newer
    found = dlpack.read(capsule)
    assert (found.address, found.shape, found.strides) == (array.address, (3, 2, 4), (48, 16, 2))
    assert (found.dtype, found.device, found.read_only) == (np.dtype(dtype).name, (2, device.ordinal), False)
    assert array.__dlpack_device__() == (2, device.ordinal)


class Holder:
    """An array on the host of which there is one capsule."""

    def __init__(self, capsule) -> None:
        self.capsule = capsule

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **asked):
        return self.capsule


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_numpy_reads_our_capsules(version) -> None:
    """An independent reader: the same capsule over host memory, said to be the host's."""
    values, strides = np.arange(24, dtype=np.float32), (1, 6)
    address = values.__array_interface__["data"][0]
    owner = type("Owner", (), {})()
    owner.values, gone = values, weakref.ref(owner)
    capsule = dlpack.make(address, (6, 4), strides, values.dtype, 0, owner, version is not None)
    at = int(words_at(id(capsule) + object.__basicsize__, 1)[0])
    words_at(at + (32 if "versioned" in repr(capsule) else 0), 2)[1] = 1  # the host
    taken = np.from_dlpack(Holder(capsule))
    assert np.array_equal(taken, values.reshape(4, 6).T)
    assert np.shares_memory(taken, values)
    del owner
    gc.collect()
    assert gone() is not None
    del taken, capsule
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("version", [None, (1, 0)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint16, np.int64, np.float64, np.bool_])
def test_we_read_capsules_of_numpy(dtype, version) -> None:
    array = np.zeros((4, 6, 8), dtype)[::2, :, ::-1].transpose(2, 0, 1)
    found = dlpack.read(array.__dlpack__(max_version=version))
    assert found.address == array.__array_interface__["data"][0]
    assert (found.shape, found.strides) == (array.shape, tuple(s // array.itemsize for s in array.strides))
    assert (found.dtype, found.device, found.read_only) == (np.dtype(dtype).name, (1, 0), False)


def test_a_capsule_keeps_the_memory_until_it_is_given_back(device) -> None:
    array = DeviceArray.from_numpy(np.ones((4, 4), np.float16))
    gone = weakref.ref(array.buffer)
    capsule = array.__dlpack__()
    del array
    gc.collect()
    assert gone() is not None
    del capsule
    gc.collect()
    assert gone() is None


def test_a_capsule_is_ready_for_the_stream_that_takes_it(device) -> None:
    with Stream(device) as ours, Stream(device) as theirs:
        array = DeviceArray.empty((8,), np.float16, device, ours)
        cases = {-1: 0, ours.handle: 0, theirs.handle: 1, None: 1, 1: 1, 2: 1}
        for stream, waits in cases.items():
            with recorded() as calls:
                array.__dlpack__(stream=stream)
            waited = [int(args[0]) for name, args in calls if name == "cuStreamWaitEvent"]
            assert waited == [stream or 1] * waits
        assert array.__cuda_array_interface__["stream"] == ours.handle
        with recorded() as calls:
            DeviceArray.from_numpy(np.ones(3)).__dlpack__()
        assert calls.count("cuStreamWaitEvent") == 0
    with recorded() as calls:
        assert array.__cuda_array_interface__["stream"] == LEGACY, "the stream is gone"
        array.__dlpack__(stream=LEGACY)
    assert calls.count("cuCtxSynchronize") == 2
    assert calls.count("cuEventRecord") == 0


def test_capsules_that_are_refused(device) -> None:
    array = DeviceArray.from_numpy(np.ones(4, np.float16))
    for words, asked in {
        r"dl_device=\(1, 0\); allowed: \(2, 0\)": {"dl_device": (1, 0)},
        "copy=True": {"copy": True},
    }.items():
        with pytest.raises(BufferError, match=words):
            array.__dlpack__(**asked)
    with pytest.raises(HandleError, match="stream=0"):
        array.__dlpack__(stream=0)
    with pytest.raises(BufferError, match="DLPack has no dtype"):
        DeviceArray.from_numpy(np.zeros(3, "m8[s]")).__dlpack__()
    array.free()
    with pytest.raises(HandleError, match=r"used after free\(\)"):
        array.__dlpack__()


def test_the_interface_of_a_result_names_its_stream(device) -> None:
    with Stream(device) as stream:
        result = fc.attention(*up(*make()), stream=stream)
        assert result.__cuda_array_interface__["stream"] == stream.handle
        stream.synchronize()
    assert DeviceArray.from_numpy(np.ones(3)).__cuda_array_interface__["stream"] == LEGACY


# ---- refused


class OfTheHost:
    """An array on the host, as PyTorch and JAX have them too."""

    def __init__(self, array) -> None:
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **asked):
        return self.array.__dlpack__()

    def data_ptr(self):
        return self.array.__array_interface__["data"][0]


def test_arrays_of_other_libraries_on_the_host(device) -> None:
    q, k, v = make()
    there, out = up(q, k, v), DeviceArray.from_numpy(np.zeros_like(q))
    with pytest.raises(fc.InvalidArgument, match=r"q is on a device of DLPack type 1; allowed: 2 \(CUDA\)"):
        fc.attention(OfTheHost(q), *there[1:])
    plan = fc.plan_attention(*there)
    with recorded() as calls, pytest.raises(fc.InvalidArgument, match=r"q points to 0x\w+, which is not device memory"):
        plan(OfTheHost(q), *there[1:], out)
    assert calls.work() == []


@pytest.mark.parametrize("call", ["attention", "plan"])
def test_arrays_of_jax_are_no_outputs(device, call) -> None:
    there, out = up(*make()), DeviceArray.from_numpy(np.full((B, SQ, H, D), 7, np.float16))
    plan = fc.plan_attention(*there)
    run = {"attention": lambda x: fc.attention(*there, out=x), "plan": lambda x: plan(*there, x)}[call]
    with recorded() as calls, pytest.raises(fc.InvalidArgument, match=r"out is an array of JAX, which never change"):
        run(AsJax(out))
    assert calls.work() == []
    assert (out.to_numpy() == 7).all()


def test_read_only_arrays_are_no_outputs(device) -> None:
    there, out = up(*make()), DeviceArray.from_numpy(np.zeros((B, SQ, H, D), np.float16))

    class ReadOnly(ByDlpack):
        def __dlpack__(self, **asked):
            capsule = super().__dlpack__(**asked)
            if "versioned" in repr(capsule):
                words_at(int(words_at(id(capsule) + object.__basicsize__, 1)[0]), 4)[3] = 1
            return capsule

    plan = fc.plan_attention(*there)
    for wrong in (ReadOnly(out), AsStridedMemoryView(out, readonly=True)):
        for run in (lambda x: fc.attention(*there, out=x), lambda x: plan(*there, x, check=True)):
            with pytest.raises(fc.InvalidArgument, match="out is read-only"):
                run(wrong)
    fc.attention(ReadOnly(there[0]), *there[1:], out=out)


@pytest.mark.parametrize("kind", [lambda c: object(), lambda c: _taken(c), lambda c: "capsule"])
def test_what_is_no_capsule(device, kind) -> None:
    there = up(*make())
    wrong = types.SimpleNamespace(__dlpack__=lambda **_: kind(there[0].__dlpack__()), __dlpack_device__=lambda: (2, 0))
    with pytest.raises(fc.InvalidArgument, match=r"q: TypeError: __dlpack__ returned .*; allowed: a capsule"):
        fc.attention(wrong, *there[1:])


def _taken(capsule):
    """A capsule that somebody took: NumPy, over host memory."""
    host = np.ones(3, np.float32).__dlpack__()
    np.from_dlpack(Holder(host))
    return host


def test_a_dlpack_array_outside_its_memory(device) -> None:
    q, k, v = up(*make())
    far = DeviceArray(q.buffer, q.shape, q.dtype, q.strides, offset=64)
    with pytest.raises(fc.InvalidArgument, match=r"q reaches from .* outside its allocation"):
        fc.attention(ByDlpack(far), k, v)
    with pytest.raises(fc.InvalidArgument, match="q has dtype int32"):
        fc.attention(ByDlpack(DeviceArray(q.buffer, (1, 2, 2, 8), np.dtype(np.int32), (32, 16, 8, 1))), k, v)


# ---- dtypes of ml_dtypes


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_dtypes_by_name(device, name) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name))
    host = np.linspace(-2, 2, 24).astype(dtype).reshape(1, 3, 1, 8)
    array = DeviceArray.from_numpy(host)
    assert array.to_numpy().tobytes() == host.tobytes()
    spec = fc.ArraySpec(host.shape, name)
    if name == "bfloat16":
        fc.plan_attention(spec, spec, spec)
    else:
        for x in (spec, host, array):
            with pytest.raises(fc.InvalidArgument, match=f"q has dtype {name}; allowed: float16, bfloat16"):
                fc.plan_attention(x, x, x)
    with pytest.raises(fc.InvalidArgument, match="q has dtype 'float8_of_mine'"):
        fc.plan_attention(fc.ArraySpec((1, 3, 1, 8), "float8_of_mine"), spec, spec)


def test_no_framework_is_imported(device) -> None:
    from support import python_says

    code = """
import sys, numpy as np, flashcore_drv as fc
x = fc.DeviceArray.from_numpy(np.ones((1, 8, 1, 32), np.float16))
fc.attention(x, x, x).__dlpack__()
print([n for n in ("cupy", "jax", "torch", "numba", "cuda.core", "ml_dtypes") if n in sys.modules])
"""
    assert python_says(code) == "[]\n"


def test_addresses_of_classes_are_bounded(device) -> None:
    q = up(*make())[0]
    for _ in range(100):
        kind = type("Another", (Exported,), {})
        assert interop.address_of(kind(q), "q") == q.address
    assert len(interop.addresses._READERS) <= 64
    assert driver.module()


# ---- calls that are known again


def test_bfloat16_of_numpy_goes_into_out() -> None:
    """Its ``.data`` raises ValueError, as no other attribute does."""
    q = np.random.default_rng(0).standard_normal((1, 16, 1, 32)).astype("bfloat16")
    out = np.empty_like(q)
    for _ in range(2):
        assert fc.attention(q, q, q, out=out) is out
    assert np.array_equal(out, fc.attention(q, q, q))


def test_an_array_among_the_options_of_a_known_call() -> None:
    x = [fc.DeviceArray.from_numpy(np.ones((1, 16, 1, 32), np.float16)) for _ in range(4)]
    for _ in range(2):
        fc.attention(*x[:3], out=x[3])
    fc.attention(*x[:3], out=x[3], window_size=np.array([4, 0]))
    with pytest.raises(fc.InvalidArgument, match="softmax_scale"):
        fc.attention(*x[:3], out=x[3], softmax_scale=np.array([0.1, 0.2]))
