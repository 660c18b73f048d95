"""The kernels of unfused attention against float64, each alone and all together, on random problems."""

import numpy as np
import pytest
from hypothesis import given
from strategies import Case, Placed, Storage, cases, scores_like, storages

import flashcore_drv as fc
from flashcore_drv import reference
from flashcore_drv.dtypes import BF16, F16, F32
from flashcore_drv.runtime import Device, DeviceArray, is_emulated

PLAIN = Storage((0, 1, 2), 0, 0)


def assert_close(out, true, same, dtype):
    verdict = reference.judge(out, true, same, dtype.mantissa_bits)
    assert verdict.ok, verdict


@given(case=cases)
def test_qk(device: Device, case: Case) -> None:
    values = case.values()
    q, k = (Placed(case.shapes[n], values[n].dtype, case.storage["qkvo".index(n)], values[n]) for n in "qk")
    s = scores_like(case, case.storage[3])
    fc.unfused.qk(q.array, k.array, softmax_scale=case.softmax_scale, layout="bhsd", out=s.array)
    true = reference.truth(values["q"], values["k"], values["v"], case.scale, False).s
    assert_close(s.read(), true, reference.qk_rounded(values["q"], values["k"], case.scale), F32)


@given(case=cases, storage=storages)
def test_softmax(device: Device, case: Case, storage: Storage) -> None:
    rng = np.random.default_rng(case.seed)
    shape = (case.batch, case.num_heads, case.seqlen_q, case.seqlen_k)
    values = (4 * rng.standard_normal(shape) + 20 * case.mean).astype(np.float32)
    s = scores_like(case, storage, values)
    p = Placed(shape, case.dtype.to_numpy(), case.storage[3])
    _, lse = fc.unfused.softmax(s.array, dtype=p.array.dtype, causal=case.causal, return_lse=True, out=p.array)
    true_p, true_lse = reference.softmax(values.astype(np.float64), case.causal)
    same_p, same_lse = reference.softmax_rounded(values, case.dtype, case.causal)
    assert_close(p.read(), true_p, same_p, case.dtype)
    assert_close(lse.to_numpy(), true_lse, same_lse, F32)


@given(case=cases, storage=storages)
def test_pv(device: Device, case: Case, storage: Storage) -> None:
    values = case.values()
    rng = np.random.default_rng(case.seed + 1)
    weights = rng.random((case.batch, case.num_heads, case.seqlen_q, case.seqlen_k))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(case.dtype.to_numpy())
    p = Placed(weights.shape, weights.dtype, storage, weights)
    v = Placed(case.shapes["v"], weights.dtype, case.storage[2], values["v"])
    o = Placed(case.shapes["o"], weights.dtype, case.storage[3])
    fc.unfused.pv(p.array, v.array, layout="bhsd", out=o.array)
    true = weights.astype(np.float64) @ reference.expand_heads(values["v"], case.num_heads).astype(np.float64)
    assert_close(o.read(), true, reference.pv_rounded(weights, values["v"]), case.dtype)


@given(case=cases)
def test_attention(device: Device, case: Case) -> None:
    values = case.values()
    placed = {n: Placed(case.shapes[n], values["q"].dtype, x, values.get(n)) for n, x in zip("qkvo", case.storage)}
    options = {"softmax_scale": case.softmax_scale, "causal": case.causal, "layout": "bhsd", "impl": "unfused"}
    arrays = [placed[n].array for n in "qkv"]
    _, lse = fc.attention(*arrays, out=placed["o"].array, return_lse=True, **options)
    true = reference.truth(values["q"], values["k"], values["v"], case.scale, case.causal)
    same = reference.same_maths(values["q"], values["k"], values["v"], case.dtype, case.scale, case.causal)
    out = placed["o"].read()
    assert_close(out, true.o, same.o, case.dtype)
    assert_close(lse.to_numpy(), true.lse, same.lse, F32)
    again = fc.attention(*arrays, **options).to_numpy()
    assert out.tobytes() == again.tobytes(), "two runs differ"


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values_stay_where_they_belong(device: Device, dtype, special) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((1, 2, s, 64), np.float32).astype(dtype.to_numpy()) for s in (70, 90, 90))
    q[0, 0, 5, 3] = k[0, 1, 7, 9] = v[0, 1, 11, 13] = special
    out = fc.attention(q, k, v, layout="bhsd", impl="unfused")
    true, same = reference.truth(q, k, v, 0.125, False), reference.same_maths(q, k, v, dtype, 0.125, False)
    assert_close(out, true.o, same.o, dtype)
    assert not np.isfinite(out).all()
    assert np.isfinite(out).any()


def test_a_query_with_nothing_to_attend_to_gives_zero(device: Device) -> None:
    rng = np.random.default_rng(4)
    q, k, v = (rng.standard_normal((1, s, 1, 64)).astype(np.float16) for s in (100, 30, 30))
    out, lse = fc.attention(q, k, v, causal=True, return_lse=True, impl="unfused")
    assert (out[0, :70] == 0).all()
    assert (lse[0, 0, :70] == -np.inf).all()
    assert np.isfinite(lse[0, 0, 70:]).all()


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_scores_far_from_zero_do_not_overflow(device: Device, dtype) -> None:
    rng = np.random.default_rng(5)
    s = (rng.standard_normal((1, 2, 20, 3000)) + np.linspace(-3e4, 3e4, 3000)).astype(np.float32)
    p, lse = fc.unfused.softmax(s, dtype=dtype.to_numpy(), return_lse=True)
    true_p, true_lse = reference.softmax(s.astype(np.float64), False)
    same_p, same_lse = reference.softmax_rounded(s, dtype, False)
    assert_close(p, true_p, same_p, dtype)
    assert_close(lse, true_lse, same_lse, F32)


def test_more_scores_than_32_bits_can_count(device: Device) -> None:
    """3 heads of 28,000 x 28,000: 2.35e9 scores, 9.4 GB, which the emulator has no memory for."""
    if is_emulated():
        pytest.skip("needs 20 GB of device memory: a GPU")
    heads, seqlen = 3, 28_000
    rng = np.random.default_rng(7)
    q, k, v = (rng.standard_normal((1, heads, seqlen, 64), np.float32).astype(np.float16) for _ in range(3))
    arrays = [DeviceArray.from_numpy(x) for x in (q, k, v)]
    s = fc.unfused.qk(arrays[0], arrays[1], layout="bhsd")
    out = fc.attention(*arrays, layout="bhsd", impl="unfused").to_numpy()
    for head, row in ((0, 0), (1, 27_999), (2, 13_000), (2, 27_999)):
        part = q[:, head : head + 1, row : row + 1], k[:, head : head + 1], v[:, head : head + 1]
        true, same = reference.truth(*part, 0.125, False), reference.same_maths(*part, F16, 0.125, False)
        line = s.as_strided((seqlen,), (1,), (head * seqlen + row) * seqlen).to_numpy()
        assert_close(line, true.s.reshape(-1), same.s.reshape(-1), F32)
        assert_close(out[:, head, row], true.o[:, 0, 0], same.o[:, 0, 0], F16)


def test_the_longest_row(device: Device) -> None:
    s = np.random.default_rng(6).standard_normal((1, 1, 2, 65_536)).astype(np.float32)
    p = fc.unfused.softmax(s)
    assert_close(p, reference.softmax(s.astype(np.float64), False)[0], reference.softmax_rounded(s, F16, False)[0], F16)
