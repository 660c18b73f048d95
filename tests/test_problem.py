"""What attention and its stages refuse, before anything reaches the GPU, and what a problem says of itself."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Exported, emulated_driver, named, placed, refused_call

import flashcore_drv as fc
from flashcore_drv.arguments import matrices
from flashcore_drv.dtypes import BF16, F16
from flashcore_drv.plan import contiguous
from flashcore_drv.problem import MAX_SEQLEN, UNBOUNDED, Problem, visible_scores
from flashcore_drv.runtime import Device, DeviceArray, Stream
from flashcore_drv.validation import make_problem

FUNCTIONS = {"attention": fc.attention, "qk": fc.unfused.qk, "softmax": fc.unfused.softmax, "pv": fc.unfused.pv}
BFLOAT16 = BF16.to_numpy()

# batch, query heads, key/value heads, queries, keys, head_dim: all different, so that a mix-up is a mismatch
B, H, HK, SQ, SK, D = 2, 6, 3, 5, 7, 16
Q, KV, S, O = (B, SQ, H, D), (B, SK, HK, D), (B, H, SQ, SK), (B, SQ, H, D)
SHAPES = {
    "attention": {"q": Q, "k": KV, "v": KV},
    "qk": {"q": Q, "k": KV},
    "softmax": {"s": S},
    "pv": {"p": S, "v": KV},
}
OUTPUTS = {"attention": (O, np.float16), "qk": (S, np.float32), "softmax": (S, np.float16), "pv": (O, np.float16)}
ARGUMENTS = [(function, name) for function, shapes in SHAPES.items() for name in shapes]
ALL = pytest.mark.parametrize("function", FUNCTIONS)
EACH = pytest.mark.parametrize(("function", "name"), ARGUMENTS)
PLACES = pytest.mark.parametrize("place", ["host", "device"])


def filled(shape, dtype=np.float16):
    return np.ones(shape, dtype)


def arguments(function):
    """Legal arguments, as NumPy arrays."""
    dtype = np.float32 if function == "softmax" else np.float16
    return {name: filled(shape, dtype) for name, shape in SHAPES[function].items()}


def refused(device: Device, function: str, found: dict, *words: object, error=fc.InvalidArgument) -> None:
    """The call is refused with all of these words, and nothing was given to the GPU or left there."""
    refused_call(FUNCTIONS[function], found, *words, error=error)


# ---- rank, dimensions, dtype


@EACH
@PLACES
@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_rank(device, function, name, place, rank) -> None:
    found = arguments(function)
    found[name] = filled((2,) * rank, found[name].dtype)
    refused(device, function, placed(place, found), f"{name} has shape {(2,) * rank}", f"{rank} dim", "allowed: 4")


@EACH
@PLACES
@pytest.mark.parametrize("axis", range(4))
def test_empty_dimension(device, function, name, place, axis) -> None:
    found = arguments(function)
    if function == "attention" and axis == 1:
        pytest.skip("attention of sequences of length 0 is defined")
    shape = tuple(0 if i == axis else n for i, n in enumerate(found[name].shape))
    found[name] = filled(shape, found[name].dtype)
    refused(device, function, placed(place, found), f"{name} has shape {shape}", "allowed: every dimension at least 1")


@EACH
@PLACES
@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.complex64, np.bool_, ">f2"], ids=str)
def test_dtype(device, function, name, place, dtype) -> None:
    found = arguments(function)
    found[name] = found[name].astype(dtype)
    allowed = ["float32"] if function == "softmax" else ["float16"]
    refused(device, function, placed(place, found), name, np.dtype(dtype), *allowed)


@pytest.mark.parametrize(("function", "name"), [a for a in ARGUMENTS if a[1] in "kv"])
@PLACES
def test_dtypes_differ(device, function, name, place) -> None:
    found = arguments(function)
    found[name] = found[name].astype(BFLOAT16)
    first = next(iter(found))
    refused(
        device, function, placed(place, found), f"{name} has dtype bfloat16", f"{first} has float16", "must be equal"
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int32, "nonsense", 3, object], ids=str)
def test_dtype_of_softmax(device, dtype) -> None:
    refused(device, "softmax", arguments("softmax") | {"dtype": dtype}, "dtype", "float16, bfloat16")


MISMATCHES = [
    ("attention", "k", (B + 1, SK, HK, D), f"k has batch {B + 1}", f"q has {B}"),
    ("attention", "v", (B + 1, SK, HK, D), f"v has batch {B + 1}", f"q has {B}"),
    ("attention", "k", (B, SK, HK, D + 8), f"k has head_dim {D + 8}", f"q has {D}"),
    ("attention", "v", (B, SK, HK - 1, D), f"v has num_heads_kv {HK - 1}", f"k has {HK}"),
    ("attention", "v", (B, SK + 1, HK, D), f"v has seqlen_k {SK + 1}", f"k has {SK}"),
    ("qk", "k", (1, SK, HK, D), "k has batch 1", f"q has {B}"),
    ("qk", "k", (B, SK, HK, 2 * D), f"k has head_dim {2 * D}", f"q has {D}"),
    ("pv", "v", (B + 2, SK, HK, D), f"v has batch {B + 2}", f"p has {B}"),
    ("pv", "v", (B, SK - 1, HK, D), f"v has seqlen_k {SK - 1}", f"p has {SK}"),
]


@PLACES
@pytest.mark.parametrize(("function", "name", "shape", "found_words", "other_words"), MISMATCHES)
def test_dimensions_differ(device, place, function, name, shape, found_words, other_words) -> None:
    found = arguments(function) | {name: filled(shape)}
    refused(device, function, placed(place, found), found_words, other_words, "must be equal")


@PLACES
@pytest.mark.parametrize("function", ["attention", "qk", "pv"])
@pytest.mark.parametrize("heads_kv", [4, 5, 2 * H])
def test_heads_ratio(device, place, function, heads_kv) -> None:
    found = arguments(function)
    found |= {name: filled((B, SK, heads_kv, D)) for name in "kv" if name in found}
    refused(device, function, placed(place, found), f"has {H} heads", f"has {heads_kv}", "allowed: a multiple")


@PLACES
@pytest.mark.parametrize("head_dim", [1, 4, 12, 63, 65, 127, 1001])
@pytest.mark.parametrize(("function", "name"), [("attention", "q"), ("qk", "q"), ("pv", "v")])
def test_head_dim(device, place, function, name, head_dim) -> None:
    found = {k: x if k == "p" else filled((*x.shape[:3], head_dim)) for k, x in arguments(function).items()}
    refused(device, function, placed(place, found), f"{name} has head_dim {head_dim}", "allowed: multiples of 8")


@PLACES
@pytest.mark.parametrize("function", ["attention", "qk", "pv"])
def test_head_dim_without_a_kernel(device, place, function) -> None:
    head_dim = 264 if function == "attention" else 136
    found = {k: x if k == "p" else filled((*x.shape[:3], head_dim)) for k, x in arguments(function).items()}
    refused(device, function, placed(place, found), f"head_dim={head_dim}", "built", "missing", error=fc.Unsupported)


# ---- kinds of arguments


@EACH
@pytest.mark.parametrize("value", [None, 1.5, [[1.0]], "q", object(), memoryview(b"ab"), np.float16(1)], ids=named)
def test_unknown_type(device, function, name, value) -> None:
    kind = type(value).__qualname__
    refused(device, function, arguments(function) | {name: value}, f"{name} is a ", kind, "allowed: numpy.ndarray")


@ALL
def test_unknown_type_of_out(device, function) -> None:
    refused(device, function, arguments(function) | {"out": [1]}, "out is a builtins.list", "allowed: numpy.ndarray")


@EACH
def test_masked_array(device, function, name) -> None:
    found = arguments(function)
    found[name] = np.ma.masked_array(found[name], found[name] > 0)
    refused(device, function, found, f"{name} has a mask", "allowed: arrays without")


FLAGS = [("attention", "causal"), ("attention", "return_lse"), ("softmax", "causal"), ("softmax", "return_lse")]


@pytest.mark.parametrize(("function", "flag"), FLAGS)
@pytest.mark.parametrize("value", [0, 1, None, "True", 1.0, np.ones(1, bool)], ids=named)
def test_flag(device, function, flag, value) -> None:
    refused(device, function, arguments(function) | {flag: value}, f"{flag}={value!r}", "allowed: True, False")


@pytest.mark.parametrize("function", ["attention", "qk"])
@pytest.mark.parametrize(
    "scale", [math.nan, 0, -0.0, -1, math.inf, -math.inf, 1e39, 1e-39, 10**400], ids=lambda x: str(x)[:5]
)
def test_scale(device, function, scale) -> None:
    refused(
        device,
        function,
        arguments(function) | {"softmax_scale": scale},
        f"softmax_scale={scale!r}",
        "allowed: positive",
    )


@pytest.mark.parametrize("function", ["attention", "qk"])
@pytest.mark.parametrize("scale", ["auto", "0.5", 1j, [1.0], object()], ids=named)
def test_scale_that_is_no_number(device, function, scale) -> None:
    found = arguments(function) | {"softmax_scale": scale}
    refused(device, function, found, f"softmax_scale={scale!r}", "allowed: positive, finite")


@pytest.mark.parametrize("function", ["attention", "qk", "pv"])
@pytest.mark.parametrize("layout", ["sbhd", "BSHD", "", None, 4], ids=named)
def test_layout(device, function, layout) -> None:
    refused(device, function, arguments(function) | {"layout": layout}, f"layout={layout!r}", "'bshd', 'bhsd'")


@pytest.mark.parametrize("impl", ["fused", None])
def test_impl(device, impl) -> None:
    refused(device, "attention", arguments("attention") | {"impl": impl}, f"impl={impl!r}", "allowed: 'auto'")


@ALL
@PLACES
@pytest.mark.parametrize("stream", ["default", -1, 1.5, True, object(), b""], ids=named)
def test_stream(device, function, place, stream) -> None:
    found = placed(place, arguments(function)) | {"stream": stream}
    refused(device, function, found, f"stream={stream!r}", "allowed: None, an int handle")


@ALL
@PLACES
def test_closed_stream(device, function, place) -> None:
    stream = Stream(device)
    stream.close()
    found = placed(place, arguments(function)) | {"stream": stream}
    refused(device, function, found, "stream: used after close()", error=fc.HandleError)


# ---- strides, alignment, place


@EACH
@pytest.mark.parametrize("strides", ["last 2", "last 0", "negative"])
def test_strides(device, function, name, strides) -> None:
    found = placed("device", arguments(function))
    shape = found[name].shape
    whole = DeviceArray.from_numpy(filled(2 * math.prod(shape), found[name].dtype))
    first, second, third, _ = (2 * s for s in found[name].strides)
    last, third = {"last 2": (2, third), "last 0": (0, third), "negative": (1, -third)}[strides]
    offset = (shape[2] - 1) * -third if third < 0 else 0
    found[name] = whole.as_strided(shape, (first, second, third, last), offset)
    allowed = "allowed: none below 0" if strides == "negative" else "allowed: a last stride of 1"
    refused(device, function, found, f"{name} has strides {found[name].strides}", allowed)


@EACH
@PLACES
def test_alignment(device, function, name, place) -> None:
    found = arguments(function)
    x = found[name]
    if place == "host":
        found[name] = np.frombuffer(bytearray(x.nbytes + 1), x.dtype, offset=1).reshape(x.shape)
        address = found[name].__array_interface__["data"][0]
    else:
        found = placed(place, found)
        whole = DeviceArray.from_numpy(np.zeros(x.nbytes + 1, np.uint8))
        address = whole.address + 1
        found[name] = Exported(whole, shape=x.shape, typestr=x.dtype.str, data=(address, False), strides=None)
    size = x.dtype.itemsize
    refused(device, function, found, f"{name} is at {address:#x}", f"allowed: a multiple of {size}")


@pytest.mark.parametrize(("function", "name"), [a for a in ARGUMENTS if len(SHAPES[a[0]]) > 1])
def test_host_and_device_mixed(device, function, name) -> None:
    found = arguments(function)
    found[name] = DeviceArray.from_numpy(found[name])
    others = [other for other in found if other != name]
    refused(device, function, found, f"{name} on <Device 0", f"{others[0]} on the host", "must be in one place")


@ALL
@PLACES
def test_out_in_another_place(device, function, place) -> None:
    shape, dtype = OUTPUTS[function]
    out = filled(shape, dtype)
    found = placed(place, arguments(function)) | {"out": DeviceArray.from_numpy(out) if place == "host" else out}
    words = ("out on <Device 0", "on the host") if place == "host" else ("out on the host", "on <Device 0")
    refused(device, function, found, *words, "must be in one place")


@EACH
def test_freed_array(device, function, name) -> None:
    found = placed("device", arguments(function))
    found[name].free()
    nbytes = found[name].nbytes
    refused(device, function, found, f"{name}: device memory of {nbytes} bytes", "used after free()")


@pytest.mark.parametrize(("function", "name", "axis"), [("qk", "q", 1), ("qk", "k", 1), ("softmax", "s", 2)])
def test_sequence_longer_than_indices_reach(device, function, name, axis) -> None:
    found = placed("device", arguments(function))
    shape = tuple(MAX_SEQLEN + 1 if i == axis else n for i, n in enumerate(found[name].shape))
    strides = tuple(0 if i == axis else s for i, s in enumerate(found[name].strides))
    found[name] = found[name].as_strided(shape, strides)
    refused(
        device, function, found, f"{name} has a sequence length of {MAX_SEQLEN + 1}", f"allowed: up to {MAX_SEQLEN}"
    )


# ---- out


@ALL
@PLACES
def test_shape_of_out(device, function, place) -> None:
    shape, dtype = OUTPUTS[function]
    wrong = (*shape[:3], shape[3] + 8)
    for out in (filled(wrong, dtype), filled(shape[:3], dtype), filled((1, *shape), dtype)):
        found = placed(place, arguments(function) | {"out": out})
        refused(device, function, found, f"out has shape {out.shape}", f"allowed: {shape}")


@pytest.mark.parametrize("function", ["attention", "pv"])
def test_out_follows_the_layout(device, function) -> None:
    found = {k: x if k == "p" else x.swapaxes(1, 2) for k, x in arguments(function).items()}
    found |= {"layout": "bhsd", "out": filled(O)}
    refused(device, function, found, f"out has shape {O}", f"allowed: {(B, H, SQ, D)}")


@ALL
@PLACES
@pytest.mark.parametrize("dtype", [np.float64, np.int32, BFLOAT16, ">"], ids=str)
def test_dtype_of_out(device, function, place, dtype) -> None:
    shape, wanted = OUTPUTS[function]
    dtype = np.dtype(wanted).newbyteorder(">") if dtype == ">" else np.dtype(dtype)
    found = placed(place, arguments(function) | {"out": filled(shape, dtype)})
    refused(device, function, found, f"out has dtype {dtype}", f"allowed: {np.dtype(wanted)}")


@ALL
@PLACES
def test_read_only_out(device, function, place) -> None:
    shape, dtype = OUTPUTS[function]
    out = filled(shape, dtype)
    found = placed(place, arguments(function))
    if place == "host":
        out.flags.writeable = False
    else:
        array = DeviceArray.from_numpy(out)
        out = Exported(array, data=(array.address, True))
    refused(device, function, found | {"out": out}, "out is read-only", "allowed: an array that can be written")


@ALL
def test_freed_out(device, function) -> None:
    shape, dtype = OUTPUTS[function]
    found = placed("device", arguments(function) | {"out": filled(shape, dtype)})
    found["out"].free()
    refused(device, function, found, "out: device memory", "used after free()")


@EACH
@pytest.mark.parametrize("where", ["the same", "the last element", "the first element"])
def test_out_over_an_input(device, function, name, where) -> None:
    shape, dtype = OUTPUTS[function]
    found = placed("device", arguments(function))
    x = found[name]
    output, elements = math.prod(shape) * np.dtype(dtype).itemsize, x.nbytes
    before = {"the same": 0, "the last element": elements - 4, "the first element": -(output - 4)}[where]
    start = max(0, -before)  # bytes before the input
    whole = DeviceArray.from_numpy(np.zeros(start + max(elements, before + output), np.uint8))
    found[name] = Exported(whole, shape=x.shape, typestr=x.dtype.str, data=(whole.address + start, False), strides=None)
    data = (whole.address + start + before, False)
    found["out"] = Exported(whole, shape=shape, typestr=np.dtype(dtype).str, data=data, strides=None)
    first, last = data[0], data[0] + output
    refused(
        device, function, found, f"out (bytes {first:#x} to {last:#x}) overlaps {name}", "allowed: memory of its own"
    )


@EACH
def test_numpy_out_over_an_input(device, function, name) -> None:
    shape, dtype = OUTPUTS[function]
    found = arguments(function)
    x = found[name]
    memory = np.zeros(max(x.nbytes, math.prod(shape) * np.dtype(dtype).itemsize), np.uint8)
    found[name] = memory[: x.nbytes].view(x.dtype).reshape(x.shape)
    found["out"] = memory[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    refused(device, function, found, "out (bytes 0x", f"overlaps {name}", "allowed: memory of its own")


def test_numpy_out_over_an_input_with_gaps(device) -> None:
    memory = np.ones(2 * math.prod(Q) + 8, np.float16)
    found = arguments("attention")
    found["out"] = memory[: 2 * math.prod(Q)].reshape(*Q, 2)[..., 0]
    found["q"] = memory[-math.prod(Q) :].reshape(Q)
    refused(device, "attention", found, "out (bytes 0x", "overlaps q", "allowed: memory of its own")


@ALL
@pytest.mark.parametrize("axis", range(3))
def test_out_over_itself(device, function, axis) -> None:
    shape, dtype = OUTPUTS[function]
    found = placed("device", arguments(function))
    strides = [math.prod(shape[i + 1 :]) for i in range(4)]
    strides[axis] = 0 if axis < 2 else shape[3] - 1
    found["out"] = DeviceArray.from_numpy(filled(math.prod(shape), dtype)).as_strided(shape, tuple(strides))
    words = (
        f"out with shape {shape} and strides {tuple(strides)} overlaps itself",
        "allowed: every element at an address",
    )
    refused(device, function, found, *words)


# ---- CUDA Array Interface


@pytest.fixture
def exports(device):
    """Arguments of qk on the GPU, with q as another library would show it, changed."""

    def make(**changes):
        found = placed("device", arguments("qk"))
        found["q"] = Exported(found["q"], **changes)
        return found

    return make


def test_interface_with_a_mask(device, exports) -> None:
    refused(device, "qk", exports(mask=object()), "q has a mask", "allowed: arrays without")


def test_interface_with_stream_0(device, exports) -> None:
    refused(device, "qk", exports(stream=0), "q: stream 0", "allowed: None, 1, 2 or a handle")


def test_interface_with_a_null_pointer(device, exports) -> None:
    refused(device, "qk", exports(data=(0, False)), "q has a null pointer", "allowed: device memory")


@pytest.mark.parametrize("shape", [(0, 5, 6, 16), (2, 0, 6, 16)])
def test_interface_of_an_empty_array(device, exports, shape) -> None:
    found = exports(data=(0, False), shape=shape, strides=None)
    refused(device, "qk", found, f"q has shape {shape}", "allowed: every dimension at least 1")


def test_interface_with_strides_between_elements(device, exports) -> None:
    strides = (960, 192, 31, 2)
    refused(device, "qk", exports(strides=strides), f"q has strides of {strides} bytes", "allowed: multiples of 2")


@pytest.mark.parametrize("strides", [(960, 192, 32), (1920, 960, 192, 32, 2), ()])
def test_interface_with_another_number_of_strides(device, exports, strides) -> None:
    found = exports(strides=strides)
    refused(device, "qk", found, f"q has strides of {strides} bytes", "allowed: one for each of 4 dimensions")


@pytest.mark.parametrize("typestr", ["nonsense", "<f3"])
def test_interface_with_an_unknown_type(device, exports, typestr) -> None:
    refused(device, "qk", exports(typestr=typestr), f"q has typestr {typestr!r}", "allowed: ", "float16")


@pytest.mark.parametrize("typestr", [">f2", "<V2", "<i2", "<f8"])
def test_interface_with_another_type(device, exports, typestr) -> None:
    found = exports(typestr=typestr, shape=(1, 1, 1, 8), strides=None)
    refused(device, "qk", found, f"q has dtype {np.dtype(typestr)}", "allowed: float16, bfloat16")


@pytest.mark.parametrize("where", ["past the end", "before the start", "strides past the end"])
def test_interface_outside_its_allocation(device, exports, where) -> None:
    found = exports()
    q = found["q"].keep
    changes = {
        "past the end": {"data": (q.address + 2, False)},
        "before the start": {"strides": (-960, 192, 32, 2)},
        "strides past the end": {"strides": (1024, 192, 32, 2)},
    }[where]
    found["q"] = Exported(q, **changes)
    refused(device, "qk", found, "q reaches from 0x", f"outside its allocation of {q.nbytes} bytes at {q.address:#x}")


def test_interface_of_host_memory(device, exports) -> None:
    host = filled(Q)
    address = host.__array_interface__["data"][0]
    refused(device, "qk", exports(data=(address, False)), f"q points to {address:#x}", "not device memory")


def test_interface_of_freed_memory(device, exports) -> None:
    emulated_driver()  # a GPU's pool may know the memory for longer
    found = exports()
    q = found["q"].keep
    address = q.address
    q.free()
    device.synchronize()
    refused(device, "qk", found, "q ", f"{address:#x}")


# ---- after all of that


def test_the_context_computes_as_before(device) -> None:
    out = fc.attention(**arguments("attention"))
    assert np.array_equal(out, filled(O))


# ---- what a problem says of itself

sizes = st.integers(0, 24)
windows = st.just(UNBOUNDED) | st.integers(0, 30)


@st.composite
def problems(draw):
    batch, heads_kv, group = (draw(st.integers(1, 4)) for _ in range(3))
    seqlen_q, seqlen_k = draw(sizes), draw(sizes)
    d, dv = draw(st.sampled_from([8, 64, 128])), draw(st.sampled_from([8, 64, 128]))
    q, k = contiguous(batch, heads_kv * group, seqlen_q, d), contiguous(batch, heads_kv, seqlen_k, d)
    v, o = contiguous(batch, heads_kv, seqlen_k, dv), contiguous(batch, heads_kv * group, seqlen_q, dv)
    return Problem(
        q,
        k,
        v,
        o,
        draw(st.sampled_from([F16, BF16])),
        0.5,
        draw(windows),
        draw(windows),
        return_lse=draw(st.booleans()),
    )


@given(seqlen_q=sizes, seqlen_k=sizes, left=windows, right=windows)
def test_visible_scores_are_counted(seqlen_q, seqlen_k, left, right) -> None:
    offset = seqlen_k - seqlen_q
    pairs = itertools.product(range(seqlen_q), range(seqlen_k))
    assert visible_scores(seqlen_q, seqlen_k, left, right) == sum(-left <= j - i - offset <= right for i, j in pairs)


@given(problem=problems())
def test_flops_are_those_of_the_visible_scores(problem) -> None:
    visible = visible_scores(problem.seqlen_q, problem.seqlen_k, problem.window_left, problem.window_right)
    multiply_and_add = 2
    columns = problem.head_dim + problem.head_dim_v  # of the first product to add up, of the second to make
    assert problem.flops == multiply_and_add * columns * visible * problem.batch * problem.num_heads


@given(problem=problems())
def test_min_bytes_are_those_of_the_arrays(problem) -> None:
    element = problem.dtype.to_numpy()
    arrays = [np.empty(x.shape, element) for x in (problem.q, problem.k, problem.v, problem.o)]
    lse = [np.empty(problem.q.shape[:3], np.float32)] if problem.return_lse else []
    assert problem.min_bytes == sum(x.nbytes for x in arrays + lse)


class Described:
    """An array argument that only says where its elements are."""

    name, writeable, dtype = "x", True, np.dtype(np.float16)

    def __init__(self, shape, strides, address, name="x") -> None:
        self.shape, self.strides, self.address, self.name = shape, strides, address, name
        self.gpu_address = address
        extent = sum((n - 1) * s for n, s in zip(shape, strides)) + 1
        self.span = address, address + 2 * extent


@given(
    shape=st.tuples(*[st.integers(1, 5)] * 4),
    gaps=st.tuples(*[st.integers(0, 3)] * 3),
    layout=st.sampled_from(["bshd", "bhsd"]),
)
def test_matrices_reach_every_element(shape, gaps, layout) -> None:
    strides = [1]
    for n, gap in zip(reversed(shape), gaps):
        strides.insert(0, strides[0] * n + gap)
    m = matrices(Described(shape, tuple(strides), 64), layout)
    heads, rows = (2, 1) if layout == "bshd" else (1, 2)
    assert m.shape == (shape[0], shape[heads], shape[rows], shape[3])
    for index in np.ndindex(*shape):
        there = index[0] * m.batch_stride + index[heads] * m.head_stride + index[rows] * m.row_stride + index[3]
        assert there == sum(i * s for i, s in zip(index, strides))


def test_a_problem_is_a_value(device) -> None:
    def make():
        q, k, v, out = (
            Described((1, 4, 2, 8), (64, 16, 8, 1), 1024 * i, n) for i, n in enumerate(["q", "k", "v", "out"])
        )
        return make_problem(q, k, v, out, causal=True)

    assert make() == make()
    assert len({make(), make()}) == 1
    assert make().softmax_scale == 8**-0.5
    with pytest.raises(AttributeError):
        make().softcap = 1.0
