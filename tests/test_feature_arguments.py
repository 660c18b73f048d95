"""What windows, biases, packed sequences and the other features may be, and the problems that they pose."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Placed, Storage
from support import Exported, named, placed, refused_call

import flashcore_drv as fc
from flashcore_drv.dtypes import BF16, F16, F32
from flashcore_drv.interop import view_of
from flashcore_drv.operands import NewArray
from flashcore_drv.plan import contiguous
from flashcore_drv.problem import MAX_SEQLEN, UNBOUNDED, Bias, Matrices, Packed, Problem
from flashcore_drv.runtime import DeviceArray
from flashcore_drv.validation import make_problem

# batch, query heads, key/value heads, queries, keys, head_dim, head_dim_v: all different, so that a mix-up shows
B, H, HK, SQ, SK, D, DV = 2, 6, 3, 5, 7, 16, 24
TOTAL_Q, TOTAL_K = 9, 13
BIAS = (B, H, SQ, SK)
PLACES = pytest.mark.parametrize("place", ["host", "device"])
FUNCTIONS = {"attention": fc.attention, "attention_varlen": fc.attention_varlen, "attention_merge": fc.attention_merge}
SIDES = {
    "alibi_slopes": np.ones(H, np.float32),
    "bias": np.ones(BIAS, np.float16),
    "sinks": np.ones(H, np.float32),
    "seqused_k": np.full(B, 3, np.int32),
    "cu_seqlens_q": np.array([0, 5, 9], np.int32),
    "cu_seqlens_k": np.array([0, 7, 13], np.int32),
}
OF_BOTH = ("alibi_slopes", "sinks", "seqused_k")
EACH_SIDE = pytest.mark.parametrize(
    ("function", "name"),
    [("attention", name) for name in (*OF_BOTH, "bias")]
    + [("attention_varlen", name) for name in (*OF_BOTH, "cu_seqlens_q", "cu_seqlens_k")],
)
BOTH = pytest.mark.parametrize("function", ["attention", "attention_varlen"])


def ones(*shape, dtype=np.float16):
    return np.ones(shape, dtype)


def arguments(function):
    """Legal arguments, as NumPy arrays."""
    if function == "attention":
        return {"q": ones(B, SQ, H, D), "k": ones(B, SK, HK, D), "v": ones(B, SK, HK, DV)}
    if function == "attention_merge":
        out, lse = ones(B, SQ, H, DV), ones(B, H, SQ, dtype=np.float32)
        return {"out_a": out, "lse_a": lse, "out_b": out.copy(), "lse_b": lse.copy()}
    found = {"q": ones(TOTAL_Q, H, D), "k": ones(TOTAL_K, HK, D), "v": ones(TOTAL_K, HK, DV)}
    starts = {name: SIDES[name] for name in ("cu_seqlens_q", "cu_seqlens_k")}
    return found | starts | {"max_seqlen_q": SQ, "max_seqlen_k": SK}


def refused(function, found, *words, error=fc.InvalidArgument) -> None:
    refused_call(FUNCTIONS[function], found, *words, error=error)


# ---- numbers


@BOTH
@pytest.mark.parametrize(
    "window",
    [(1,), (1, 2, 3), 5, "12", (1.5, 0), (0, -2), (-3, 0), (True, 0), ("1", 0), object(), [[1], 2], {1: 2}],
    ids=named,
)
def test_window(device, function, window) -> None:
    found = arguments(function) | {"window_size": window}
    refused(function, found, f"window_size={window!r}", "allowed: None, or (left, right)")


@BOTH
@pytest.mark.parametrize("right", [1, 5, 1000])
def test_a_window_that_shows_what_causal_hides(device, function, right) -> None:
    found = arguments(function) | {"causal": True, "window_size": (3, right)}
    refused(function, found, f"window_size=(3, {right}) with causal=True", f"the window shows {right}", "0, -1 or None")


@BOTH
@pytest.mark.parametrize("softcap", [-1, math.nan, math.inf, 1e39, 1e-39, None, "5", [5.0]], ids=named)
def test_softcap(device, function, softcap) -> None:
    refused(function, arguments(function) | {"softcap": softcap}, f"softcap={softcap!r}", "allowed: 0 (none)")


@pytest.mark.parametrize(("softcap", "scale"), [(1e-30, 1e30), (1e30, 1e-30)])
def test_softcap_too_far_from_the_scale(device, softcap, scale) -> None:
    found = arguments("attention") | {"softcap": softcap, "softmax_scale": scale}
    refused("attention", found, f"softcap={softcap!r} with softmax_scale={scale!r}", "their quotient", "normal range")


@pytest.mark.parametrize("name", ["max_seqlen_q", "max_seqlen_k"])
@pytest.mark.parametrize("value", [-1, MAX_SEQLEN + 1, 5.0, None, True, "5"], ids=named)
def test_max_seqlen(device, name, value) -> None:
    found = arguments("attention_varlen") | {name: value}
    refused("attention_varlen", found, f"{name}={value!r}", f"allowed: a whole number from 0 to {MAX_SEQLEN}")


# ---- side inputs: type, shape, memory, place


@EACH_SIDE
@pytest.mark.parametrize("value", [1.5, [1, 2], "x", object()], ids=named)
def test_unknown_type(device, function, name, value) -> None:
    refused(function, arguments(function) | {name: value}, f"{name} is a ", "allowed: numpy.ndarray")


@EACH_SIDE
@PLACES
@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint32, np.bool_, ">"], ids=str)
def test_dtype(device, function, name, place, dtype) -> None:
    right = SIDES[name]
    wrong = right.astype(right.dtype.newbyteorder(">") if dtype == ">" else dtype)
    words = f"{name} has dtype {wrong.dtype}", f"allowed: {right.dtype}"
    refused(function, placed(place, arguments(function) | {name: wrong}), *words)


WRONG_SHAPES = {
    "alibi_slopes": [(), (1,), (HK,), (H, B), (B, 1), (1, H), (B, H, 1)],
    "bias": [
        (),
        BIAS[1:],
        (1, *BIAS),
        (3, H, SQ, SK),
        (B, HK, SQ, SK),
        (B, H, SK, SQ),
        (B, H, 0, SK),
        (B, H, SQ, SK + 1),
    ],
    "sinks": [(), (1,), (HK,), (B, H), (1, H)],
    "seqused_k": [(), (1,), (B + 1,), (B, 1)],
    "cu_seqlens_q": [(), (0,), (1,), (B + 1, 1)],
    "cu_seqlens_k": [(), (0,), (1,), (1, B + 1)],
}


@EACH_SIDE
@PLACES
def test_shape(device, function, name, place) -> None:
    for shape in WRONG_SHAPES[name]:
        found = arguments(function) | {name: np.zeros(shape, SIDES[name].dtype)}
        refused(function, placed(place, found), f"{name} has shape {shape}", "allowed: (")


def test_numbers_of_packed_sequences_differ(device) -> None:
    found = arguments("attention_varlen") | {"cu_seqlens_k": np.array([0, 3, 5, 7], np.int32)}
    refused("attention_varlen", found, "cu_seqlens_k has batch 3, cu_seqlens_q has 2", "must be equal")


@EACH_SIDE
@pytest.mark.parametrize("stride", [2, -1])
def test_strides(device, function, name, stride) -> None:
    found = placed("device", arguments(function))
    shape = SIDES[name].shape
    whole = DeviceArray.from_numpy(np.zeros(4 * math.prod(shape), SIDES[name].dtype))
    strides = (*(2 * math.prod(shape[i + 1 :]) for i in range(len(shape) - 1)), stride)
    found[name] = whole.as_strided(shape, strides, shape[-1] if stride < 0 else 0)
    allowed = "none below 0" if stride < 0 else "last stride of 1 or 0" if name == "bias" else "C-contiguous"
    refused(function, found, f"{name} has strides {strides}", f"allowed: {allowed}" if stride < 0 else allowed)


def test_slopes_of_sequences_with_a_gap(device) -> None:
    found = placed("device", arguments("attention"))
    found["alibi_slopes"] = DeviceArray.from_numpy(np.zeros(4 * H, np.float32)).as_strided((B, H), (2 * H, 1))
    refused("attention", found, f"alibi_slopes has strides ({2 * H}, 1)", "allowed: C-contiguous")


@EACH_SIDE
def test_alignment(device, function, name) -> None:
    found = placed("device", arguments(function))
    right = SIDES[name]
    whole = DeviceArray.from_numpy(np.zeros(right.nbytes + 1, np.uint8))
    data = (whole.address + 1, False)
    found[name] = Exported(whole, shape=right.shape, typestr=right.dtype.str, data=data, strides=None)
    refused(function, found, f"{name} is at {whole.address + 1:#x}", f"allowed: a multiple of {right.itemsize}")


@EACH_SIDE
def test_on_the_gpu_beside_arrays_on_the_host(device, function, name) -> None:
    found = arguments(function) | {name: DeviceArray.from_numpy(SIDES[name])}
    refused(function, found, f"{name} on <Device 0", "q on the host", "must be in one place")


@EACH_SIDE
@PLACES
def test_out_over_it(device, function, name, place) -> None:
    found = arguments(function)
    shape = (*found["q"].shape[:-1], DV)
    right = SIDES[name]
    memory = np.zeros(max(math.prod(shape) * 2, right.nbytes), np.uint8)
    if place == "host":
        memory[: right.nbytes] = np.ascontiguousarray(right).reshape(-1).view(np.uint8)
        found[name] = memory[: right.nbytes].view(right.dtype).reshape(right.shape)
        found["out"] = memory[: math.prod(shape) * 2].view(np.float16).reshape(shape)
    else:
        found = placed("device", found)
        whole = DeviceArray.from_numpy(memory)
        for key, of, kind in ((name, right.shape, right.dtype), ("out", shape, np.dtype(np.float16))):
            data = (whole.address, False)
            found[key] = Exported(whole, shape=of, typestr=kind.str, data=data, strides=None)
    refused(function, found, "out (bytes 0x", f"overlaps {name}", "allowed: memory of its own")


# ---- side inputs: values on the host


@BOTH
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(H,), (B, H)])
def test_slopes_that_are_not_finite(device, function, value, shape) -> None:
    slopes = np.zeros(shape, np.float32)
    slopes[..., 4] = value
    place = (4,) if len(shape) == 1 else (0, 4)
    refused(function, arguments(function) | {"alibi_slopes": slopes}, f"alibi_slopes has {value} at {place}", "finite")


@BOTH
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sinks_that_leave_nothing_to_divide_by(device, function, value) -> None:
    sinks = np.array([0, 0, value, 0, 0, 0], np.float32)
    refused(function, arguments(function) | {"sinks": sinks}, f"sinks has {value} at (2,)", "allowed: below inf")


@pytest.mark.parametrize(
    ("function", "used", "words"),
    [
        ("attention", [3, -1], ("seqused_k[1] is -1", "allowed: 0 to 7")),
        ("attention", [8, 0], ("seqused_k[0] is 8", "allowed: 0 to 7")),
        ("attention_varlen", [7, 7], ("seqused_k[1] is 7", "allowed: 0 to 6")),
        ("attention_varlen", [-5, 0], ("seqused_k[0] is -5", "allowed: 0 to 7")),
    ],
)
def test_more_keys_used_than_there_are(device, function, used, words) -> None:
    refused(function, arguments(function) | {"seqused_k": np.array(used, np.int32)}, *words)


@pytest.mark.parametrize("side", ["q", "k"])
@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ([1, 4, 9], "begins with 1; allowed: 0"),
        ([-1, 4, 9], "begins with -1; allowed: 0"),
        ([0, 5, 4], "gives sequence 1 the length -1; allowed: 0 to {longest}, max_seqlen_{side}"),
        ([0, 8, 9], "gives sequence 0 the length 8; allowed: 0 to {longest}, max_seqlen_{side}"),
        ([0, -(2**31), 2**31 - 1], "gives sequence 0 the length -2147483648"),
        ([0, 5, 9], "ends with 9; allowed: up to 8, the rows there are"),
    ],
)
def test_packed_lengths(device, side, starts, words) -> None:
    found = arguments("attention_varlen") | {f"cu_seqlens_{side}": np.array(starts, np.int32)}
    if words.startswith("ends"):
        found |= {name: found[name][:8] for name in ("q" if side == "q" else "kv")}
    longest = SQ if side == "q" else SK
    refused("attention_varlen", found, f"cu_seqlens_{side} {words.format(longest=longest, side=side)}")


# ---- packed arrays


@PLACES
@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("rank", [0, 2, 4])
def test_rank_of_packed_arrays(device, place, name, rank) -> None:
    found = arguments("attention_varlen") | {name: ones(*(2,) * rank)}
    words = f"{name} has shape {(2,) * rank}", f"{rank} dim", "allowed: 3 (rows of all sequences, heads, head_dim)"
    refused("attention_varlen", placed(place, found), *words)


PACKED_MISMATCHES = [
    ({"v": (TOTAL_K + 1, HK, DV)}, "v has total_k 14, k has 13"),
    ({"k": (TOTAL_K, HK, D + 8)}, "k has head_dim 24, q has 16"),
    ({"v": (TOTAL_K, HK - 1, DV)}, "v has num_heads_kv 2, k has 3"),
    ({"k": (TOTAL_K, 4, D), "v": (TOTAL_K, 4, DV)}, "q has 6 heads and k has 4"),
    ({"q": (TOTAL_Q, H, 12), "k": (TOTAL_K, HK, 12)}, "q has head_dim 12; allowed: multiples of 8"),
    ({"v": (TOTAL_K, HK, 12)}, "v has head_dim 12; allowed: multiples of 8"),
    ({"q": (TOTAL_Q, 0, D)}, "q has shape (9, 0, 16); allowed: every dimension at least 1"),
    ({"v": (TOTAL_K, HK, 0)}, "v has shape (13, 3, 0); allowed: every dimension at least 1"),
]


@PLACES
@pytest.mark.parametrize(("shapes", "words"), PACKED_MISMATCHES)
def test_dimensions_of_packed_arrays(device, place, shapes, words) -> None:
    found = arguments("attention_varlen") | {name: ones(*shape) for name, shape in shapes.items()}
    refused("attention_varlen", placed(place, found), words)


@PLACES
def test_out_of_packed_sequences(device, place) -> None:
    for shape in ((TOTAL_Q, H, D), (B, SQ, H, DV), (TOTAL_Q + 1, H, DV)):
        found = placed(place, arguments("attention_varlen") | {"out": ones(*shape)})
        refused("attention_varlen", found, f"out has shape {shape}", f"allowed: {(TOTAL_Q, H, DV)}")


def test_a_bias_of_packed_sequences(device) -> None:
    found = arguments("attention_varlen") | {"bias": SIDES["bias"]}
    refused("attention_varlen", found, "bias of packed sequences", "one length for all", "allowed: None")


# ---- head_dim_v


def test_out_has_the_columns_of_v(device) -> None:
    found = arguments("attention") | {"out": ones(B, SQ, H, D)}
    refused("attention", found, f"out has shape {(B, SQ, H, D)}", f"allowed: {(B, SQ, H, DV)}")


@pytest.mark.parametrize("head_dim_v", [1, 12, 63])
def test_head_dim_v(device, head_dim_v) -> None:
    found = arguments("attention") | {"v": ones(B, SK, HK, head_dim_v)}
    refused("attention", found, f"v has head_dim {head_dim_v}", "allowed: multiples of 8")


def test_head_dim_v_without_a_kernel(device) -> None:
    found = arguments("attention") | {"v": ones(B, SK, HK, 264)}
    refused("attention", found, "head_dim_v=264", "built", "missing", error=fc.Unsupported)


# ---- the unfused path

UNFUSED_LACKS = [
    ({"window_size": (3, 2)}, "window_size (3, 2)"),
    ({"causal": True, "window_size": (3, 0)}, "window_size (3, 0)"),
    ({"softcap": 5.0}, "softcap 5.0"),
    *(({name: SIDES[name]}, name) for name in (*OF_BOTH, "bias")),
]


@pytest.mark.parametrize(("options", "words"), UNFUSED_LACKS)
def test_the_unfused_path_refuses_what_it_lacks(device, options, words) -> None:
    found = arguments("attention") | {"v": ones(B, SK, HK, D), "impl": "unfused"} | options
    refused("attention", found, "unfused: ", f"missing: {words}, which", 'impl="flash" takes', error=fc.Unsupported)


def test_the_unfused_path_has_one_head_dim(device) -> None:
    words = "unfused: ", f"missing: head_dim_v {DV} beside head_dim {D}"
    refused("attention", arguments("attention") | {"impl": "unfused"}, *words, error=fc.Unsupported)


# ---- attention_merge

MERGE = "attention_merge"


@PLACES
@pytest.mark.parametrize("name", ["out_a", "lse_a", "out_b", "lse_b"])
def test_dtype_of_parts(device, place, name) -> None:
    found = arguments(MERGE)
    found[name] = found[name].astype(np.float64)
    refused(MERGE, placed(place, found), f"{name} has dtype float64", "float")


def test_parts_of_different_dtypes(device) -> None:
    found = arguments(MERGE) | {"out_b": ones(B, SQ, H, DV, dtype=BF16.to_numpy())}
    refused(MERGE, found, "out_b has dtype bfloat16, out_a has float16")


PARTS = [
    ({"out_b": (B, SQ, H, D)}, f"out_b has shape {(B, SQ, H, D)}, out_a has {(B, SQ, H, DV)}"),
    ({"lse_a": (B, SQ, H)}, f"lse_a has shape {(B, SQ, H)}", f"that of out_a has {(B, H, SQ)}"),
    ({"lse_b": (B, H, SQ, 1)}, f"lse_b has shape {(B, H, SQ, 1)}", f"{(B, H, SQ)}"),
    ({"out_a": (B, H), "out_b": (B, H)}, f"out_a has shape {(B, H)}, 2 dimensions", "allowed: 4"),
    ({"out_a": (SQ, H, DV), "out_b": (SQ, H, DV)}, f"lse_a has shape {(B, H, SQ)}", f"{(H, SQ)}"),
    ({"out_a": (B, SQ, H, 12), "out_b": (B, SQ, H, 12)}, "out_a has head_dim 12", "multiples of 8"),
]


@PLACES
@pytest.mark.parametrize("case", PARTS)
def test_shapes_of_parts(device, place, case) -> None:
    shapes, *words = case
    found = arguments(MERGE)
    found |= {name: ones(*shape, dtype=found[name].dtype) for name, shape in shapes.items()}
    refused(MERGE, placed(place, found), *words)


def test_layout_of_parts(device) -> None:
    refused(MERGE, arguments(MERGE) | {"layout": "sbhd"}, "layout='sbhd'", "'bshd', 'bhsd'")
    refused(MERGE, arguments(MERGE) | {"layout": "bhsd"}, f"{(B, H, SQ)}", f"{(B, SQ, H)}")


@pytest.mark.parametrize("name", ["out_a", "lse_a", "out_b", "lse_b"])
def test_parts_in_two_places(device, name) -> None:
    found = arguments(MERGE)
    found[name] = DeviceArray.from_numpy(found[name])
    refused(MERGE, found, f"{name} on <Device 0", "on the host", "must be in one place")


@pytest.mark.parametrize("name", ["out_a", "out_b"])
def test_merging_over_a_part(device, name) -> None:
    found = arguments(MERGE)
    refused(MERGE, found | {"out": found[name]}, "out (bytes 0x", f"overlaps {name}")


def test_a_freed_part(device) -> None:
    found = placed("device", arguments(MERGE))
    found["lse_b"].free()
    refused(MERGE, found, "lse_b: device memory", "used after free()")


# ---- the problems that arguments pose


def views(found):
    return {name: view_of(x, name) for name, x in found.items()}


def pose(function, sides=(), **options) -> Problem:
    found = arguments(function)
    if function == "attention_varlen":
        options["max_seqlens"] = found.pop("max_seqlen_q"), found.pop("max_seqlen_k")
    found |= {name: SIDES[name] for name in sides}
    seen = views(found)
    q, k, v = (seen.pop(name) for name in "qkv")
    out = NewArray("out", (*q.shape[:-1], DV), q.dtype)
    return make_problem(q, k, v, out, seen, **options)


def test_a_plain_problem_has_no_features() -> None:
    assert pose("attention") == Problem(
        Matrices(B, H, SQ, D, SQ * H * D, D, H * D),
        Matrices(B, HK, SK, D, SK * HK * D, D, HK * D),
        Matrices(B, HK, SK, DV, SK * HK * DV, DV, HK * DV),
        Matrices(B, H, SQ, DV, SQ * H * DV, DV, H * DV),
        F16,
        D**-0.5,
    )
    assert not pose("attention").scored
    assert not pose("attention").windowed


def test_packed_arrays_are_matrices_without_a_batch_stride() -> None:
    problem = pose("attention_varlen", return_lse=True)
    assert problem.q == Matrices(B, H, SQ, D, 0, D, H * D)
    assert problem.k == Matrices(B, HK, SK, D, 0, D, HK * D)
    assert problem.v == Matrices(B, HK, SK, DV, 0, DV, HK * DV)
    assert problem.o == Matrices(B, H, SQ, DV, 0, DV, H * DV)
    assert problem.varlen == Packed(TOTAL_Q, TOTAL_K)
    assert (problem.batch, problem.seqlen_q, problem.seqlen_k) == (B, SQ, SK)
    assert problem.lse_shape == (H, TOTAL_Q)
    elements = TOTAL_Q * H * (D + DV) + TOTAL_K * HK * (D + DV)
    assert problem.min_bytes == 2 * elements + 4 * TOTAL_Q * H


def test_sequences_are_no_longer_than_all_rows() -> None:
    found = views({name: x for name, x in arguments("attention_varlen").items() if isinstance(x, np.ndarray)})
    q, k, v = (found.pop(name) for name in "qkv")
    out = NewArray("out", (TOTAL_Q, H, DV), q.dtype)
    problem = make_problem(q, k, v, out, found, max_seqlens=(1000, MAX_SEQLEN))
    assert (problem.seqlen_q, problem.seqlen_k) == (TOTAL_Q, TOTAL_K)


def test_side_inputs_are_seen() -> None:
    problem = pose("attention", ("alibi_slopes", "bias", "sinks", "seqused_k"), softcap=5)
    assert problem.alibi_batch_stride == 0
    assert problem.bias == Bias(F16, Matrices(*BIAS, H * SQ * SK, SQ * SK, SK), 1)
    assert (problem.sinks, problem.seqused_k, problem.softcap) == (True, True, 5.0)
    assert problem.scored
    assert problem.min_bytes == pose("attention").min_bytes + 2 * math.prod(BIAS)


@pytest.mark.parametrize(("shape", "stride"), [((H,), 0), ((B, H), H)])
def test_slopes_of_heads_or_of_sequences(shape, stride) -> None:
    q, k, v = (view_of(x, n) for n, x in arguments("attention").items())
    out = NewArray("out", (B, SQ, H, DV), q.dtype)
    sides = views({"alibi_slopes": np.zeros(shape, np.float32)})
    problem = make_problem(q, k, v, out, sides)
    assert problem.alibi_batch_stride == stride
    assert problem.scored


@given(
    broadcast=st.tuples(*[st.booleans()] * 4),
    by_strides=st.booleans(),
    dtype=st.sampled_from([F16, BF16, F32]),
    gap=st.integers(0, 3),
)
def test_a_bias_reaches_every_element(device, broadcast, by_strides, dtype, gap) -> None:
    shape = tuple(1 if once else n for once, n in zip(broadcast, BIAS))
    values = np.random.default_rng(gap).integers(-128, 128, shape).astype(np.float32)  # exact in bfloat16
    memory = Placed(shape, dtype.to_numpy(), Storage((1, 0, 2), gap, gap), values)
    array = memory.broadcast(BIAS) if by_strides else memory.array
    q, k, v = (view_of(x, n) for n, x in placed("device", arguments("attention")).items())
    out = NewArray("out", (B, SQ, H, DV), q.dtype)
    bias = make_problem(q, k, v, out, views({"bias": array})).bias
    assert bias.dtype is dtype
    assert bias.dims.shape == BIAS
    flat = memory.whole.to_numpy()[gap:].astype(float)
    wanted = np.broadcast_to(values, BIAS)
    x = bias.dims
    for b, h, i, j in np.ndindex(BIAS):
        at = b * x.batch_stride + h * x.head_stride + i * x.row_stride + j * bias.col_stride
        assert flat[at] == wanted[b, h, i, j]
    assert (x.batch_stride == 0, x.head_stride == 0, x.row_stride == 0, bias.col_stride == 0) == broadcast


@pytest.mark.parametrize(
    ("causal", "window", "left", "right"),
    [
        (False, None, UNBOUNDED, UNBOUNDED),
        (True, None, UNBOUNDED, 0),
        (False, (-1, 0), UNBOUNDED, 0),
        (True, (2, None), 2, 0),
        (True, (2, -1), 2, 0),
        (True, (np.int64(2), 0), 2, 0),
        (False, [2, 3], 2, 3),
        (False, (SK - 2, SQ - 2), SK - 2, SQ - 2),
        (False, (SK - 1, SQ - 1), UNBOUNDED, UNBOUNDED),
        (False, (10**30, 10**30), UNBOUNDED, UNBOUNDED),
    ],
)
def test_windows(causal, window, left, right) -> None:
    problem = pose("attention", causal=causal, window_size=window)
    assert (problem.window_left, problem.window_right) == (left, right)
    assert problem.causal == (left == UNBOUNDED and right == 0)
    assert problem.windowed == ((left, right) != (UNBOUNDED, UNBOUNDED))


def test_what_others_lengths_are_does_not_change_a_batch_invariant_window() -> None:
    """Whether a window hides anything may then not choose the kernel: a longer sequence would change the choice."""
    window = (SK - 1, SQ - 1)
    assert not pose("attention_varlen", window_size=window).windowed
    assert pose("attention_varlen", window_size=window, batch_invariant=True).window_left == SK - 1
    assert pose("attention_varlen", window_size=window, batch_invariant=True).window_right == SQ - 1
    assert not pose("attention", window_size=window, batch_invariant=True).windowed


def test_problems_of_the_same_arguments_are_equal_and_of_others_are_not() -> None:
    options = [{}, {"softcap": 5.0}, {"window_size": (1, 1)}, {"causal": True}, {"return_lse": True}]
    sides = [(), *((name,) for name in (*OF_BOTH, "bias"))]
    found = [pose("attention", s, **o) for s in sides for o in options]
    assert len(set(found)) == len(found)
    assert set(found) == {pose("attention", s, **o) for s in sides for o in options}


def test_flops_with_two_head_dims() -> None:
    q, v = contiguous(1, 1, 3, 8), contiguous(1, 1, 3, 24)
    assert Problem(q, q, v, v, F16, 1.0).flops == 2 * 9 * (8 + 24)
