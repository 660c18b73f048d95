"""Every feature of the fused forward, alone and together, against float64; and what must hold whatever they are."""

from dataclasses import replace

import numpy as np
import pytest
from features import FeatureCase, Made, assert_close, check, feature_cases, guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Placed, Storage, aligned_storages
from support import small_where

import flashcore_drv as fc
from flashcore_drv import reference
from flashcore_drv.dtypes import BF16, F16, F32
from flashcore_drv.reference import Scoring
from flashcore_drv.runtime import Device, DeviceArray

few = settings(max_examples=settings.default.max_examples // 4)  # where a kernel runs several times, or for one feature
DTYPES = pytest.mark.parametrize("dtype", [F16, BF16], ids=str)


def normal(seed, *shape, dtype=F16):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype.to_numpy())


@given(case=feature_cases())
def test_attention(device: Device, case: FeatureCase) -> None:
    check(case)


@few
@given(
    case=feature_cases(batch_invariant=True, storage=st.tuples(*[aligned_storages] * 4)),
    b=st.integers(0, 3),
)
def test_batch_invariant_bits_do_not_depend_on_the_batch(device: Device, case: FeatureCase, b: int) -> None:
    """A sequence alone has the bits that it has among others, longer and shorter ones."""
    together = Made(case)
    out = together.new_output()
    lse = together.compute(out)
    b %= case.batch
    alone = Made(replace(case, lengths=case.lengths[b : b + 1], spare=(0, 0)))
    rows, keys = (slice(*starts[b : b + 2]) for starts in case.starts)
    for name, x in together.values.items():
        part = x[:, :, rows if name == "q" else keys] if case.packed else x[b : b + 1]
        alone.inputs[name] = Placed(part.shape, part.dtype, case.storage["qkv".index(name)], part)
    one = together.scoring.of_sequence(b, case.longest[1])
    alone.scoring = replace(one, seqused_k=together.used[b : b + 1] if case.seqused_k else None)
    if case.alibi == "batch":
        alone.scoring = replace(alone.scoring, alibi_slopes=one.alibi_slopes[None])
    alone.sides = alone.arguments()
    out_alone = alone.new_output()
    lse_alone = alone.compute(out_alone)
    if case.packed:
        found, found_lse = out.read()[:, :, rows], lse[:, rows]
    else:
        found, found_lse = out.read()[b : b + 1], lse[b : b + 1]
    assert out_alone.read().tobytes() == found.tobytes()
    assert lse_alone.tobytes() == found_lse.tobytes()


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window_size": (64, 64)}, {"window_size": (25, 0)}], ids=str
)
def test_batch_invariant_packed_sequences(device: Device, monkeypatch, head_dim, options) -> None:
    """Neither the batch nor the longest sequence, by which a window may hide nothing, chooses the kernel."""
    small_where(monkeypatch, lambda problem: problem.batch == 1)
    lengths = [(20, 20), (1, 60), (130, 150), (0, 9)]
    starts = [np.cumsum([0, *(n[side] for n in lengths)]).astype(np.int32) for side in range(2)]
    q, k, v = (normal(i, starts[i > 0][-1], 2, head_dim) for i in range(3))
    options = options | {"batch_invariant": True, "return_lse": True}
    out, lse = fc.attention_varlen(q, k, v, *starts, 130, 150, **options)
    for b, (seqlen_q, seqlen_k) in enumerate(lengths):
        rows, keys = (slice(*x[b : b + 2]) for x in starts)
        alone = [np.array([0, n], np.int32) for n in (seqlen_q, seqlen_k)]
        one, one_lse = fc.attention_varlen(q[rows], k[keys], v[keys], *alone, seqlen_q, seqlen_k, **options)
        assert one.tobytes() == out[rows].tobytes()
        assert one_lse.tobytes() == lse[:, rows].tobytes()


@few
@given(
    case=feature_cases(packed=True, sides_on_host=False),
    wild=st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 500), min_size=15, max_size=15),
)
def test_lengths_on_the_gpu_that_are_wrong_reach_nothing_outside(device: Device, case: FeatureCase, wild) -> None:
    """What comes out is undefined; the emulator watches every access, and Placed what was written.

    Sequences that overlap in the result would race for it, so those of several queries are in order.
    """
    made = Made(case)
    out = made.new_output()
    numbers = np.array(wild, np.int32)
    if case.batch > 1:
        numbers[: case.batch + 1].sort()
    sides = {"cu_seqlens_q": guarded(numbers[: case.batch + 1]), "cu_seqlens_k": guarded(numbers[5 : 6 + case.batch])}
    if case.seqused_k:
        sides["seqused_k"] = guarded(numbers[10 : 10 + case.batch])
    made.compute(out, read_lse=False, **sides)
    out.read()


@few
@given(case=feature_cases(packed=False, sides_on_host=False, seqused_k=True), wild=st.integers(-(2**31), 2**31 - 1))
def test_wrong_seqused_k_on_the_gpu_is_clamped(device: Device, case: FeatureCase, wild) -> None:
    made = Made(case)
    out, clamped = made.new_output(), made.new_output()
    used = np.full(case.batch, wild, np.int32)
    lse = made.compute(out, seqused_k=guarded(used))
    wanted = made.compute(clamped, seqused_k=guarded(np.clip(used, 0, case.longest[1])))
    assert out.read().tobytes() == clamped.read().tobytes()
    assert lse.tobytes() == wanted.tobytes()


# ---- merging


@few
@given(
    case=feature_cases(
        packed=False, alibi=None, seqused_k=False, layout="bhsd", window_size=(None, None), sides_on_host=True
    ),
    data=st.data(),
)
def test_merging_parts_of_the_keys_gives_the_whole(device: Device, case: FeatureCase, data) -> None:
    made = Made(case)
    q, k, v = (np.nan_to_num(made.values[n]) for n in "qkv")
    seqlen_k = case.longest[1]
    split = data.draw(st.integers(0, seqlen_k))
    sink_in = data.draw(st.sampled_from(["a", "b"]))
    parts, same = [], []
    for name, keys in (("a", slice(0, split)), ("b", slice(split, seqlen_k))):
        # the last query of the whole is as far before its last key as it is behind the last key of this part
        right = None if not case.causal else seqlen_k - keys.stop
        bias = made.scoring.bias
        if bias is not None and bias.shape[3] > 1:
            bias = np.ascontiguousarray(bias[..., keys])
        features = {
            "window_size": (None, right),
            "softcap": case.softcap,
            "bias": bias,
            "sinks": made.scoring.sinks if name == sink_in else None,
        }
        inputs = q, k[:, :, keys], v[:, :, keys]
        parts += fc.attention(*inputs, softmax_scale=case.scale, layout="bhsd", return_lse=True, **features)
        stages = reference.same_maths(*inputs, case.dtype, case.scale, scoring=Scoring(**features))
        same += [stages.o, stages.lse]
    out, lse = fc.attention_merge(*parts, layout="bhsd")
    true = reference.truth(q, k, v, case.scale, case.causal, made.scoring)
    same_o, same_lse = reference.merge(*same, np.float32)
    assert_close(out, true.o, same_o.astype(case.dtype.to_numpy()), case.dtype)
    assert_close(lse, true.lse, same_lse, F32)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 70), st.integers(1, 32).map(lambda n: 8 * n)),
    dtype=st.sampled_from([F16, BF16]),
    packed=st.booleans(),
    gaps=st.tuples(*[st.sampled_from([0, 0, 8, 1, 3])] * 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_attention_merge(device: Device, shape, dtype, packed, gaps, seed) -> None:
    """Against float64 from the very inputs, with rows that one part or both have not seen, in any memory."""
    if packed:
        shape = (1, *shape[1:])
    rng = np.random.default_rng(seed)
    outs = [rng.standard_normal(shape, np.float32).astype(dtype.to_numpy()) for _ in range(2)]
    sums = [(10 * rng.standard_normal(shape[:3], np.float32)).astype(np.float32) for _ in range(2)]
    for out, lse in zip(outs, sums):
        lse[rng.random(lse.shape) < 0.2] = -np.inf
        out[lse == -np.inf] = 0
    a, b = (Placed(shape, out.dtype, Storage((0, 1, 2), gap, gap), out) for out, gap in zip(outs, gaps))
    room = Placed(shape, outs[0].dtype, Storage((0, 2, 1), gaps[2], 0))
    lse_a, lse_b = (guarded(lse[0] if packed else lse) for lse in sums)
    arrays = [x.packed() if packed else x.array for x in (a, b, room)]
    _, lse = fc.attention_merge(arrays[0], lse_a, arrays[1], lse_b, out=arrays[2], layout="bhsd")
    found, found_lse = room.read(), lse.to_numpy().reshape(shape[:3])
    true_o, true_lse = reference.merge(outs[0], sums[0], outs[1], sums[1], np.float64)
    same_o, same_lse = reference.merge(outs[0], sums[0], outs[1], sums[1], np.float32)
    assert_close(found, true_o, same_o.astype(found.dtype), dtype)
    assert_close(found_lse, true_lse, same_lse, F32)


def test_merging_with_nothing_changes_nothing(device: Device) -> None:
    q, k, v = (normal(i, 2, 40, 3, 64) for i in range(3))
    out, lse = fc.attention(q, k, v, return_lse=True)
    nothing = fc.attention(q, k[:, :0], v[:, :0], return_lse=True)
    for parts in ((out, lse, *nothing), (*nothing, out, lse)):
        merged, merged_lse = fc.attention_merge(*parts)
        assert np.array_equal(merged, out)
        assert np.array_equal(merged_lse, lse)
    both, both_lse = fc.attention_merge(*nothing, *nothing)
    assert not both.any()
    assert (both_lse == -np.inf).all()


# ---- one feature at a time, where the result is known without a reference


@DTYPES
def test_a_window_of_one_key_copies_its_value(device: Device, dtype) -> None:
    q, k, v = (normal(i, 1, 150, 2, 64, dtype=dtype) for i in range(3))
    assert np.array_equal(fc.attention(q, k, v, window_size=(0, 0)), v)


def test_a_window_as_wide_as_the_keys_is_none(device: Device) -> None:
    q, k, v = (normal(i, 1, s, 2, 64) for i, s in enumerate((90, 140, 140)))
    wanted = fc.attention(q, k, v)
    for window in ((139, 89), (-1, 1000), (None, None), (2**40, -1)):
        assert np.array_equal(fc.attention(q, k, v, window_size=window), wanted)


def test_a_window_to_the_left_is_causal(device: Device) -> None:
    q, k, v = (normal(i, 1, s, 2, 64) for i, s in enumerate((90, 140, 140)))
    wanted = fc.attention(q, k, v, causal=True)
    for causal, window in ((False, (None, 0)), (True, (-1, -1)), (True, (None, 0)), (True, None)):
        assert np.array_equal(fc.attention(q, k, v, causal=causal, window_size=window), wanted)


@pytest.mark.parametrize("on_host", [False, True])
def test_a_sink_that_outweighs_everything_leaves_nothing(device: Device, on_host) -> None:
    q, k, v = (DeviceArray.from_numpy(normal(i, 1, 70, 2, 64)) for i in range(3))
    sinks = np.array([1e4, -np.inf], np.float32)
    given_sinks = sinks if on_host else DeviceArray.from_numpy(sinks)
    out, lse = fc.attention(q, k, v, sinks=given_sinks, return_lse=True)
    plain, plain_lse = fc.attention(q, k, v, return_lse=True, batch_invariant=True)  # not the small kernel
    assert not out.to_numpy()[:, :, 0].any()
    assert (lse.to_numpy()[:, 0] == 1e4).all()
    np.testing.assert_array_equal(out.to_numpy()[:, :, 1], plain.to_numpy()[:, :, 1])
    np.testing.assert_array_equal(lse.to_numpy()[:, 1], plain_lse.to_numpy()[:, 1])


def test_a_query_that_sees_no_key_gets_its_sink(device: Device) -> None:
    q, k, v = (normal(i, 1, s, 2, 64) for i, s in enumerate((80, 20, 20)))
    sinks = np.array([0.5, -3], np.float32)
    out, lse = fc.attention(q, k, v, causal=True, sinks=sinks, return_lse=True)
    assert not out[0, :60].any()
    np.testing.assert_allclose(lse[0, :, :60], np.broadcast_to(sinks[:, None], (2, 60)), rtol=1e-6)


def test_a_bias_of_minus_infinity_hides_keys(device: Device) -> None:
    q, k, v = (normal(i, 1, s, 2, 64) for i, s in enumerate((50, 100, 100)))
    bias = np.where(np.arange(100) < 60, 0, -np.inf).astype(np.float32)[None, None, None]
    out, lse = fc.attention(q, k, v, bias=bias, return_lse=True)
    wanted, wanted_lse = fc.attention(q, k[:, :60], v[:, :60], return_lse=True)
    np.testing.assert_allclose(out.astype(float), wanted.astype(float), atol=2**-10)
    np.testing.assert_allclose(lse, wanted_lse, atol=1e-5)


@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_a_bias_that_is_no_number_or_infinite_gives_nan(device: Device, special) -> None:
    q, k, v = (normal(i, 1, 50, 1, 64) for i in range(3))
    bias = np.zeros((1, 1, 50, 50), np.float32)
    bias[0, 0, 7, 9] = special
    out, lse = fc.attention(q, k, v, bias=bias, return_lse=True)
    assert np.isnan(out[0, 7]).all()
    assert np.isfinite(np.delete(out, 7, axis=1)).all()
    assert not np.isfinite(lse[0, 0, 7])
    assert np.isfinite(np.delete(lse, 7, axis=2)).all()


def test_keys_that_are_not_used_may_be_anything(device: Device) -> None:
    q, k, v = (normal(i, 2, 90, 2, 64) for i in range(3))
    used = np.array([30, 0], np.int32)
    k[0, 30:], v[0, 30:], k[1], v[1] = np.nan, np.inf, np.nan, np.nan
    out, lse = fc.attention(q, k, v, seqused_k=used, return_lse=True)
    assert np.isfinite(out).all()
    assert not out[1].any()
    assert (lse[1] == -np.inf).all()
    alone = fc.attention(q[:1], k[:1, :30], v[:1, :30])
    np.testing.assert_allclose(out[0].astype(float), alone[0].astype(float), atol=2**-10)


def test_packed_sequences_on_the_host(device: Device) -> None:
    """Everything in NumPy: rows after the last sequence keep their values in `out` and are 0 in new arrays."""
    q, k, v = (normal(i, n, 2, 64) for i, n in enumerate((100, 120, 120)))
    cu_q, cu_k = np.array([0, 40, 40, 90], np.int32), np.array([0, 70, 80, 110], np.int32)
    out, lse = fc.attention_varlen(q, k, v, cu_q, cu_k, 50, 70, causal=True, return_lse=True)
    assert (out.shape, lse.shape) == ((100, 2, 64), (2, 100))
    assert not out[90:].any()
    assert not lse[:, 90:].any()
    room = np.full_like(out, 7)
    assert fc.attention_varlen(q, k, v, cu_q, cu_k, 50, 70, causal=True, out=room) is room
    assert np.array_equal(room[:90], out[:90])
    assert (room[90:] == 7).all()
    alone = fc.attention(q[None, 40:90], k[None, 80:110], v[None, 80:110], causal=True)
    np.testing.assert_allclose(out[40:90].astype(float), alone[0].astype(float), atol=2**-9)


# ---- the other implementation


@few
@given(
    case=feature_cases(
        window_size=(None, None), softcap=0.0, alibi=None, bias=None, sinks=False, seqused_k=False, packed=False,
        head_dim=64, head_dim_v=64,
    ).filter(lambda c: min(c.longest) > 0)
)  # fmt: skip
def test_the_unfused_path_agrees_where_it_can(device: Device, case: FeatureCase) -> None:
    made = Made(case)
    fused, unfused = made.new_output(), made.new_output()
    made.compute(fused)
    made.compute(unfused, impl="unfused")
    largest = np.abs(np.nan_to_num(made.values["v"].astype(float))).max()
    np.testing.assert_allclose(
        fused.read().astype(float), unfused.read().astype(float), atol=4 * largest * 2.0**-case.dtype.mantissa_bits
    )
