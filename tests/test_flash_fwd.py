"""The fused forward kernels against float64, on random problems in poisoned memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, Placed, aligned_storages, cases_of, lengths, storages
from support import small_where

import flashcore_drv as fc
from flashcore_drv import api, catalog, dispatch, plan, reference
from flashcore_drv.dtypes import BF16, F16, F32
from flashcore_drv.plan import contiguous
from flashcore_drv.problem import Problem
from flashcore_drv.recall import Cache
from flashcore_drv.runtime import Device

HEAD_DIMS = st.sampled_from(catalog.FLASH_HEAD_DIMS)
fast_cases = cases_of(lengths, HEAD_DIMS, st.tuples(*[aligned_storages] * 4))
any_cases = cases_of(
    lengths | st.just(0),
    HEAD_DIMS | st.integers(1, 32).map(lambda n: 8 * n),
    st.tuples(storages, storages, storages, storages),
)
DTYPES = pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
HEAD_DIM = pytest.mark.parametrize("head_dim", catalog.FLASH_HEAD_DIMS)


def assert_close(out, true, same, dtype):
    verdict = reference.judge(out, true, same, dtype.mantissa_bits)
    assert verdict.ok, verdict


def check(case: Case) -> None:
    values = case.values()
    placed = {n: Placed(case.shapes[n], values["q"].dtype, x, values.get(n)) for n, x in zip("qkvo", case.storage)}
    options = {"softmax_scale": case.softmax_scale, "causal": case.causal, "layout": "bhsd", "impl": "flash"}
    arrays = [placed[n].array for n in "qkv"]
    _, lse = fc.attention(*arrays, out=placed["o"].array, return_lse=True, **options)
    true = reference.truth(values["q"], values["k"], values["v"], case.scale, case.causal)
    same = reference.same_maths(values["q"], values["k"], values["v"], case.dtype, case.scale, case.causal)
    out = placed["o"].read()
    assert_close(out, true.o, same.o, case.dtype)
    assert_close(lse.to_numpy(), true.lse, same.lse, F32)
    again = Placed(case.shapes["o"], values["q"].dtype, case.storage[3])
    fc.attention(*arrays, out=again.array, **options)
    assert out.tobytes() == again.read().tobytes(), "two runs differ"


@given(case=fast_cases, small=st.booleans())
def test_attention_of_aligned_arrays(device: Device, case: Case, small: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_where(patch, lambda _: small)
        check(case)


@given(case=any_cases)
def test_attention_of_any_arrays(device: Device, case: Case) -> None:
    check(case)


def normal(seed, *shape, dtype=F16):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype.to_numpy())


SPECIAL = np.array([np.nan, np.inf, -np.inf])
"""One for each problem of a batch."""


@DTYPES
@HEAD_DIM
@pytest.mark.parametrize("causal", [False, True])
def test_special_values_in_q_and_k_stay_where_they_belong(device: Device, dtype, head_dim, causal) -> None:
    q, k, v = (normal(i, 3, 2, s, head_dim, dtype=dtype) for i, s in enumerate((170, 190, 190)))
    q[:, 0, 5, 3] = k[:, 1, 7, 9] = SPECIAL
    options = {"layout": "bhsd", "causal": causal, "impl": "flash"}
    out = fc.attention(q, k, v, **options)
    true = reference.truth(q, k, v, head_dim**-0.5, causal)
    same = reference.same_maths(q, k, v, dtype, head_dim**-0.5, causal)
    for b in range(3):
        assert_close(out[b], true.o[b], same.o[b], dtype)
        assert not np.isfinite(out[b]).all()
        assert np.isfinite(out[b]).any()


@HEAD_DIM
def test_special_values_in_v_reach_every_query_that_sees_them(device: Device, head_dim) -> None:
    q, k, v = (normal(i, 3, 1, 300, head_dim) for i in range(3))
    v[:, 0, 200, 5] = SPECIAL
    out = fc.attention(q, k, v, layout="bhsd", causal=True, impl="flash")[:, 0]
    expected = np.where(np.isinf(SPECIAL), SPECIAL, np.nan).astype(np.float16)
    np.testing.assert_array_equal(out[:, 200:, 5], np.broadcast_to(expected[:, None], (3, 100)))
    assert np.isfinite(out[:, :128]).all()  # rows of a block that ends before that key
    assert np.isfinite(np.delete(out, 5, axis=2)).all()


@HEAD_DIM
def test_a_query_with_nothing_to_attend_to_gives_zero(device: Device, head_dim) -> None:
    q, k, v = (normal(i, 1, s, 1, head_dim) for i, s in enumerate((300, 30, 30)))
    out, lse = fc.attention(q, k, v, causal=True, return_lse=True, impl="flash")
    assert (out[0, :270] == 0).all()
    assert (lse[0, 0, :270] == -np.inf).all()
    assert np.isfinite(lse[0, 0, 270:]).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 72, 256])
def test_no_keys_give_zeros(device: Device, head_dim, causal) -> None:
    q, k = normal(0, 2, 70, 4, head_dim), normal(1, 2, 0, 2, head_dim)
    out, lse = fc.attention(q, k, k, causal=causal, return_lse=True)
    assert (out == 0).all()
    assert (lse == -np.inf).all()


def test_no_queries_give_nothing(device: Device) -> None:
    q, k = normal(0, 2, 0, 4, 64), normal(1, 2, 50, 2, 64)
    out, lse = fc.attention(q, k, k, return_lse=True)
    assert out.shape == (2, 0, 4, 64)
    assert lse.shape == (2, 4, 0)


@HEAD_DIM
@DTYPES
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_scores_that_rise_with_every_tile(device: Device, monkeypatch, head_dim, dtype, causal, small) -> None:
    """Every tile is larger than what the one before it let expect, so that speculation fails."""
    small_where(monkeypatch, lambda _: small)
    q, k, v = (normal(i, 1, 1, 400, head_dim, dtype=dtype) for i in range(3))
    q[..., 0], k[..., 0] = 16, np.linspace(120, 0, 400)
    out, lse = fc.attention(q, k, v, softmax_scale=0.125, layout="bhsd", causal=causal, return_lse=True, impl="flash")
    true = reference.truth(q, k, v, 0.125, causal)
    same = reference.same_maths(q, k, v, dtype, 0.125, causal)
    assert_close(out, true.o, same.o, dtype)
    assert_close(lse, true.lse, same.lse, F32)


def test_scores_far_below_zero(device: Device) -> None:
    q, k, v = (normal(i, 1, 1, 90, 64, dtype=BF16) for i in range(3))
    q[..., 0], k[..., 0] = 4096, np.linspace(-4096, -1024, 90)
    out = fc.attention(q, k, v, softmax_scale=1.0, layout="bhsd", impl="flash")
    np.testing.assert_allclose(
        out[0, 0].astype(float), np.broadcast_to(v[0, 0, -1], (90, 64)).astype(float), rtol=2**-7
    )


@HEAD_DIM
@pytest.mark.parametrize("causal", [False, True])
def test_batch_invariant_bits_do_not_depend_on_the_batch(device: Device, head_dim, causal) -> None:
    q, k, v = (normal(i, 5, 150, 2, head_dim) for i in range(3))
    options = {"causal": causal, "batch_invariant": True}
    together, lse = fc.attention(q, k, v, return_lse=True, **options)
    for b in range(5):
        one = slice(b, b + 1)
        alone, alone_lse = fc.attention(q[one], k[one], v[one], return_lse=True, **options)
        assert alone.tobytes() == together[one].tobytes()
        assert alone_lse.tobytes() == lse[one].tobytes()


@HEAD_DIM
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_bits_do_not_depend_on_the_groups_of_heads(device: Device, monkeypatch, head_dim, heads) -> None:
    """Causal kernels run groups of heads whose K and V fit the L2 together one after the other."""
    q, k, v = (normal(i, 2, 150, 3, head_dim) for i in range(3))
    together, lse = fc.attention(q, k, v, causal=True, return_lse=True)
    monkeypatch.setattr(plan, "heads_in_a_group", lambda *_: heads)
    monkeypatch.setattr(api, "CACHE", Cache(256))
    in_groups, its_lse = fc.attention(q, k, v, causal=True, return_lse=True)
    assert in_groups.tobytes() == together.tobytes()
    assert its_lse.tobytes() == lse.tobytes()


def test_batch_invariant_leaves_out_the_kernel_that_only_some_batches_get(monkeypatch) -> None:
    small_where(monkeypatch, lambda _: True)
    m = contiguous(1, 8, 512, 64)
    stems = [
        dispatch.select(Problem(m, m, m, m, F16, 0.125, batch_invariant=invariant), 89)[0].stem
        for invariant in (False, True)
    ]
    assert stems == ["flash_fwd_small_f16_d64_sm89", "flash_fwd_f16_d64_sm89"]


WINDOWS = [(0, 0), (37, 5), (64, 0), (200, None), (None, 9)]
"""Narrower and wider than a tile, and than all keys that are hidden on one side."""


@HEAD_DIM
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_windows_leave_out_the_tiles_that_nobody_sees(device: Device, head_dim, window) -> None:
    """These hold NaN. Lengths are multiples of nothing, and the last block has few rows. Hopper's have wider tiles."""
    seqlen_q, seqlen_k = 141, 423
    q, k, v = (normal(i, 1, h, s, head_dim) for i, (h, s) in enumerate(((2, seqlen_q), (1, seqlen_k), (1, seqlen_k))))
    if window[0] is not None:
        unseen = max(0, seqlen_k - seqlen_q - window[0] - 64)
        k[:, :, :unseen] = v[:, :, :unseen] = np.nan
    out, lse = fc.attention(q, k, v, window_size=window, layout="bhsd", return_lse=True, impl="flash_sm80")
    scoring = reference.Scoring(window)
    seen = [np.nan_to_num(x) for x in (q, k, v)]
    true = reference.truth(*seen, head_dim**-0.5, scoring=scoring)
    same = reference.same_maths(*seen, F16, head_dim**-0.5, scoring=scoring)
    assert_close(out, true.o, same.o, F16)
    assert_close(lse, true.lse, same.lse, F32)


@HEAD_DIM
@DTYPES
@pytest.mark.parametrize("bias_dtype", [F16, F32], ids=str)
def test_all_terms_of_the_scores_together(device: Device, head_dim, dtype, bias_dtype) -> None:
    """In a window, with sinks, and an odd number of keys: a pair of bias would reach over the last one."""
    q, k, v = (normal(i, 1, h, s, head_dim, dtype=dtype) for i, (h, s) in enumerate(((2, 90), (1, 201), (1, 201))))
    bias = normal(3, 1, 2, 90, 202, dtype=bias_dtype)[..., :201]
    scoring = reference.Scoring(
        (120, 7), 5.0, alibi_slopes=np.array([0.25, 0.01], np.float32), bias=bias, sinks=np.array([1, -2], np.float32)
    )
    features = {name: getattr(scoring, name) for name in ("window_size", "softcap", "alibi_slopes", "bias", "sinks")}
    out, lse = fc.attention(q, k, v, layout="bhsd", return_lse=True, **features)
    true = reference.truth(q, k, v, head_dim**-0.5, scoring=scoring)
    same = reference.same_maths(q, k, v, dtype, head_dim**-0.5, scoring=scoring)
    assert_close(out, true.o, same.o, dtype)
    assert_close(lse, true.lse, same.lse, F32)


@HEAD_DIM
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"window_size": (40, 3)}, {"softcap": 9.0}], ids=lambda x: "".join(x) or "full"
)
def test_a_packed_sequence_does_not_see_its_neighbours(device: Device, head_dim, options) -> None:
    """They are NaN all over, and lie in the same tile as its first and its last rows."""
    cu_q, cu_k = np.array([0, 30, 130, 150], np.int32), np.array([0, 50, 171, 200], np.int32)
    q, k, v = (normal(i, s, 2, head_dim) for i, s in enumerate((150, 200, 200)))
    for x, (begin, end) in ((q, cu_q[1:3]), (k, cu_k[1:3]), (v, cu_k[1:3])):
        x[:begin] = x[end:] = np.nan
    options = {"batch_invariant": True, "return_lse": True, **options}
    out, lse = fc.attention_varlen(q, k, v, cu_q, cu_k, 100, 121, **options)
    alone, alone_lse = fc.attention(q[None, 30:130], k[None, 50:171], v[None, 50:171], **options)
    assert np.isfinite(alone).all()
    assert out[30:130].tobytes() == alone[0].tobytes()
    assert lse[:, 30:130].tobytes() == alone_lse[0].tobytes()


@pytest.mark.parametrize("sink", [3e38, 1e30, 88.0, -3e38])
def test_sinks_of_any_size_overflow_nothing(device: Device, sink) -> None:
    q, k, v = (normal(i, 1, 1, 70, 64) for i in range(3))
    sinks = np.array([sink], np.float32)
    out, lse = fc.attention(q, k, v, sinks=sinks, layout="bhsd", return_lse=True)
    plain, plain_lse = fc.attention(q, k, v, layout="bhsd", return_lse=True, batch_invariant=True)  # the same kernel
    if sink > 0:
        assert not out.any()
        assert (lse == sinks[0]).all()
    else:
        assert out.tobytes() == plain.tobytes()
        assert lse.tobytes() == plain_lse.tobytes()
