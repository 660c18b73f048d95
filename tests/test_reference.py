"""The reference itself: float64 against a loop over elements, the kernels' precision against float64, merging."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashcore_drv import reference
from flashcore_drv.dtypes import BF16, F16
from flashcore_drv.reference import Scoring

SIDES = st.none() | st.just(-1) | st.integers(0, 9)


@st.composite
def problems(draw):
    """(q, k, v, scale, causal, Scoring), small."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, heads_kv, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    seqlen_q, seqlen_k = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    heads = heads_kv * group
    shapes = (batch, heads, seqlen_q, 4), (batch, heads_kv, seqlen_k, 4), (batch, heads_kv, seqlen_k, 3)
    q, k, v = (rng.standard_normal(x).astype(np.float16) for x in shapes)
    bias = None
    if draw(st.booleans()):
        full = (batch, heads, seqlen_q, seqlen_k)
        bias = rng.standard_normal([1 if draw(st.booleans()) else n for n in full]).astype(np.float32)
        bias[rng.random(bias.shape) < 0.2] = -np.inf
    slopes = draw(st.sampled_from([None, (heads,), (batch, heads)]))
    scoring = Scoring(
        window_size=(draw(SIDES), draw(SIDES)),
        softcap=draw(st.sampled_from([0.0, 0.5, 30.0])),
        alibi_slopes=None if slopes is None else rng.random(slopes).astype(np.float32),
        bias=bias,
        sinks=rng.standard_normal(heads).astype(np.float32) if draw(st.booleans()) else None,
        seqused_k=rng.integers(0, seqlen_k + 1, batch) if draw(st.booleans()) else None,
    )
    return q, k, v, 0.6, draw(st.booleans()), scoring


def by_element(q, k, v, scale, causal, scoring):
    """O and lse of one problem, one number at a time."""
    batch, heads, seqlen_q, _ = q.shape
    q, k, v = (x.astype(float) for x in (q, k, v))
    o, lse = np.zeros((batch, heads, seqlen_q, v.shape[3])), np.zeros((batch, heads, seqlen_q))
    left, right = scoring.window_size
    for b, h, i in np.ndindex(batch, heads, seqlen_q):
        seqlen_k = k.shape[2] if scoring.seqused_k is None else int(scoring.seqused_k[b])
        place, kv = i + seqlen_k - seqlen_q, h // (heads // k.shape[1])
        weights = {}
        for j in range(seqlen_k):
            if (causal and j > place) or (left not in (None, -1) and j < place - left):
                continue
            if right not in (None, -1) and j > place + right:
                continue
            s = scale * sum(q[b, h, i, d] * k[b, kv, j, d] for d in range(q.shape[3]))
            if scoring.softcap:
                s = scoring.softcap * math.tanh(s / scoring.softcap)
            if scoring.bias is not None:
                at = (n if size > 1 else 0 for n, size in zip((b, h, i, j), scoring.bias.shape))
                s += float(scoring.bias[tuple(at)])
            if scoring.alibi_slopes is not None:
                slopes = scoring.alibi_slopes if scoring.alibi_slopes.ndim == 1 else scoring.alibi_slopes[b]
                s -= float(slopes[h]) * abs(place - j)
            weights[j] = math.exp(s)
        total = sum(weights.values()) + (0 if scoring.sinks is None else math.exp(float(scoring.sinks[h])))
        lse[b, h, i] = math.log(total) if total else -math.inf
        o[b, h, i] = sum((w * v[b, kv, j] for j, w in weights.items()), np.zeros(v.shape[3])) / (total or 1)
    return o, lse


@given(problem=problems())
def test_truth_is_what_a_loop_over_elements_gives(problem) -> None:
    found = reference.truth(*problem)
    o, lse = by_element(*problem)
    np.testing.assert_allclose(found.o, o, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.lse, lse, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.p @ reference.expand_heads(problem[2], o.shape[1]), o, rtol=1e-12, atol=1e-13)


@given(problem=problems(), dtype=st.sampled_from([F16, BF16]))
def test_the_same_maths_is_as_exact_as_its_types(problem, dtype) -> None:
    q, k, v = (x.astype(dtype.to_numpy()) for x in problem[:3])
    true = reference.truth(q, k, v, *problem[3:])
    same = reference.same_maths(q, k, v, dtype, *problem[3:])
    assert same.o.dtype == dtype.to_numpy()
    assert same.lse.dtype == np.float32
    ulp = 2.0**-dtype.mantissa_bits
    largest = np.abs(v.astype(float)).max(initial=1)
    np.testing.assert_allclose(same.o.astype(float), true.o, atol=4 * ulp * largest)
    np.testing.assert_allclose(same.lse, true.lse, rtol=1e-5, atol=1e-5)


@given(data=st.data(), lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=4))
def test_packed_sequences_are_sequences(data, lengths) -> None:
    """In any batch of packed sequences each has the result that it has alone."""
    _, _, _, scale, causal, scoring = data.draw(problems())
    rng = np.random.default_rng(0)
    cu_q, cu_k = (np.cumsum([0, *(n[i] for n in lengths)]) for i in range(2))
    q, k, v = (rng.standard_normal((n, 2, 4)) for n in (cu_q[-1] + 2, cu_k[-1] + 1, cu_k[-1] + 1))
    batch = len(lengths)
    scoring = Scoring(
        scoring.window_size,
        scoring.softcap,
        alibi_slopes=None if scoring.alibi_slopes is None else rng.random((batch, 2)),
        sinks=None if scoring.sinks is None else rng.random(2),
        seqused_k=None if scoring.seqused_k is None else np.array([rng.integers(0, n + 1) for _, n in lengths]),
    )

    def alone(q, k, v, scoring):
        return reference.truth(q, k, v, scale, causal, scoring)

    o, lse = reference.of_packed(alone, q, k, v, cu_q, cu_k, scoring)
    for b in range(batch):
        rows, keys = slice(*cu_q[b : b + 2]), slice(*cu_k[b : b + 2])
        one = [x.swapaxes(0, 1)[None] for x in (q[rows], k[keys], v[keys])]
        slopes = None if scoring.alibi_slopes is None else scoring.alibi_slopes[b : b + 1]
        used = None if scoring.seqused_k is None else scoring.seqused_k[b : b + 1]
        wanted_o, wanted_lse = by_element(
            *one, scale, causal, Scoring(scoring.window_size, scoring.softcap, slopes, None, scoring.sinks, used)
        )
        np.testing.assert_allclose(o[rows], wanted_o[0].swapaxes(0, 1), atol=1e-12)
        np.testing.assert_allclose(lse[:, rows], wanted_lse[0], atol=1e-12)
    assert not o[cu_q[-1] :].any()
    assert not lse[:, cu_q[-1] :].any()


@given(
    split=st.integers(0, 7),
    sink_in=st.sampled_from([None, "a", "b"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_merging_parts_gives_the_whole(split, sink_in, seed) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal((2, 2, n, 4)) for n in (5, 7, 7))
    bias = np.where(rng.random((1, 1, 5, 7)) < 0.4, -np.inf, 0.0)
    sinks = rng.standard_normal(2)

    def attention(keys, with_sinks):
        scoring = Scoring(bias=bias[..., keys], sinks=sinks if with_sinks else None)
        found = reference.truth(q, k[:, :, keys], v[:, :, keys], 0.5, scoring=scoring)
        return found.o, found.lse

    a, b = attention(slice(0, split), sink_in == "a"), attention(slice(split, 7), sink_in == "b")
    o, lse = reference.merge(*a, *b, np.float64)
    whole_o, whole_lse = attention(slice(0, 7), sink_in is not None)
    np.testing.assert_allclose(o, whole_o, atol=1e-12)
    np.testing.assert_allclose(lse, whole_lse, atol=1e-12)


def test_merging_two_parts_without_keys_gives_nothing() -> None:
    o, lse = reference.merge(np.ones((1, 2)), np.full(1, -np.inf), np.ones((1, 2)), np.full(1, -np.inf), np.float32)
    assert o.tolist() == [[0, 0]]
    assert lse.tolist() == [-np.inf]


@pytest.mark.parametrize(
    ("causal", "window"), [(True, (None, None)), (False, (-1, 0)), (True, (-1, 5)), (False, (9, 0))]
)
def test_four_ways_to_say_causal(causal, window) -> None:
    assert np.array_equal(reference.visible(5, 7, causal, window), np.tri(5, 7, 2, dtype=bool))
