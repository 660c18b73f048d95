"""The fused forward kernels against float64, on random problems in poisoned memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Case, Placed, Storage, cases_of, lengths, storages

import flashcore_drv as fc
from flashcore_drv import catalog, dispatch, reference
from flashcore_drv.dtypes import BF16, F16, F32
from flashcore_drv.plan import contiguous
from flashcore_drv.problem import Problem
from flashcore_drv.runtime import Device

HEAD_DIMS = st.sampled_from(catalog.FLASH_HEAD_DIMS)
aligned = st.builds(
    Storage,
    order=st.sampled_from([(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 1, 0)]),
    row_gap=st.sampled_from([0, 8, 24]),
    offset=st.sampled_from([0, 8]),
)
fast_cases = cases_of(lengths, HEAD_DIMS, st.tuples(aligned, aligned, aligned, aligned))
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
        patch.setattr(dispatch, "_small_is_faster", lambda *_: small)
        check(case)


@given(case=any_cases)
def test_attention_of_any_arrays(device: Device, case: Case) -> None:
    check(case)


def normal(seed, *shape, dtype=F16):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype.to_numpy())


@DTYPES
@HEAD_DIM
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_in_q_and_k_stay_where_they_belong(device: Device, dtype, head_dim, causal, special) -> None:
    q, k, v = (normal(i, 1, 2, s, head_dim, dtype=dtype) for i, s in enumerate((170, 190, 190)))
    q[0, 0, 5, 3] = k[0, 1, 7, 9] = special
    options = {"layout": "bhsd", "causal": causal, "impl": "flash"}
    out = fc.attention(q, k, v, **options)
    true = reference.truth(q, k, v, head_dim**-0.5, causal)
    same = reference.same_maths(q, k, v, dtype, head_dim**-0.5, causal)
    assert_close(out, true.o, same.o, dtype)
    assert not np.isfinite(out).all()
    assert np.isfinite(out).any()


@HEAD_DIM
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_in_v_reach_every_query_that_sees_them(device: Device, head_dim, special) -> None:
    q, k, v = (normal(i, 1, 1, 300, head_dim) for i in range(3))
    v[0, 0, 200, 5] = special
    out = fc.attention(q, k, v, layout="bhsd", causal=True, impl="flash")[0, 0]
    expected = special if np.isinf(special) else np.nan
    np.testing.assert_array_equal(out[200:, 5], np.full(100, expected, np.float16))
    assert np.isfinite(out[:128]).all()  # rows of a block that ends before that key
    assert np.isfinite(np.delete(out, 5, axis=1)).all()


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
    monkeypatch.setattr(dispatch, "_small_is_faster", lambda *_: small)
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


def test_batch_invariant_leaves_out_the_kernel_that_only_some_batches_get(monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_small_is_faster", lambda *_: True)
    m = contiguous(1, 8, 512, 64)
    stems = [
        dispatch.select(Problem(m, m, m, m, F16, 0.125, batch_invariant=invariant), 89)[0].stem
        for invariant in (False, True)
    ]
    assert stems == ["flash_fwd_small_f16_d64_sm89", "flash_fwd_f16_d64_sm89"]
