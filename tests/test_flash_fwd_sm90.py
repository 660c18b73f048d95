"""The fused forward for Hopper's own instructions: what is not the same as in the other fused kernels.

All features go through the suites of those, too; here are small grids, in which a block makes many row blocks.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from features import FeatureCase, assert_close, check, feature_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import aligned_storages
from support import start_emulator

import flashcore_drv as fc
from flashcore_drv import catalog, reference, tuned
from flashcore_drv.catalog import TMA_VARIANTS
from flashcore_drv.dtypes import BF16, F16, F32
from flashcore_drv.runtime import Device, is_emulated

HEAD_DIM = pytest.mark.parametrize("head_dim", catalog.TMA_HEAD_DIMS)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
FAMILIES = pytest.mark.parametrize(
    ("family", "head_dim"),
    [(f, d) for f, (variant, _, sizes) in TMA_VARIANTS.items() if variant in ("Full", "Causal") for d in sizes],
)
OPTIONS = {"layout": "bhsd", "impl": "flash_sm90", "return_lse": True}


@pytest.fixture
def few_sms(hopper: Device) -> Iterator[list[int]]:
    """The number of SMs that plans count on, to be changed."""
    number = [2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "multiprocessors", property(lambda device: number[0]))
        yield number


def normal(seed, *shape, dtype=F16):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype.to_numpy())


def computed(q, k, v, dtype, **options):
    """(o, lse) in the shapes of q; against float64."""
    out, lse = fc.attention(q, k, v, **OPTIONS, **options)
    scale, causal = q.shape[3] ** -0.5, options.get("causal", False)
    true = reference.truth(q, k, v, scale, causal)
    same = reference.same_maths(q, k, v, dtype, scale, causal)
    assert_close(out, true.o, same.o, dtype)
    assert_close(lse, true.lse, same.lse, F32)
    return out, lse


@FAMILIES
@pytest.mark.parametrize("lengths", [(200, 70), (210, 330)], ids=str)
def test_row_blocks_one_after_the_other(few_sms, monkeypatch, family, head_dim, lengths) -> None:
    """A grid of one block, or of one for each row block, gives the same bits.

    No row block or tile is whole for all warpgroups, and some rows see nothing.
    """
    monkeypatch.setattr(tuned, "fastest", lambda *_: family)
    causal = "_causal" in family
    dtype = BF16 if causal else F16
    shapes = (1, 2, lengths[0], head_dim), *[(1, 1, lengths[1], head_dim)] * 2
    q, k, v = (normal(i, *shape, dtype=dtype) for i, shape in enumerate(shapes))
    found = []
    for few_sms[0] in (1, 132):
        fc.api.CACHE.clear()
        found.append(computed(q, k, v, dtype, causal=causal))
    assert len({out.tobytes() + lse.tobytes() for out, lse in found}) == 1


@FAMILIES
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("rise", ["once", "always"])
def test_scores_larger_than_those_before(hopper: Device, monkeypatch, family, head_dim, dtype, rise) -> None:
    """By 2^36 from a tile to the next, in the order in which kernels take them, so that speculation fails.

    For some rows of a warp only: the others fit.
    """
    monkeypatch.setattr(tuned, "fastest", lambda *_: family)
    seqlen = 420
    q, k, v = (normal(i, 1, 2, seqlen, head_dim, dtype=dtype) for i in range(3))
    steps = np.arange(seqlen)[::-1] // 64
    k[..., 0] = 2.0 * (np.minimum(steps, 3) // 3 if rise == "once" else steps)
    q[..., 0] = np.where(np.arange(seqlen) % 5 < 3, 12.5 * head_dim**0.5, 0)
    computed(q, k, v, dtype, causal="_causal" in family)


aligned = st.tuples(*[aligned_storages] * 4)
not_empty = feature_cases(storage=aligned).filter(lambda case: all(np.sum(case.lengths, 0) > 0))  # no map is of nothing


@settings(max_examples=settings.default.max_examples // 2)
@given(case=not_empty, sms=st.integers(1, 4))
def test_features(few_sms, monkeypatch, case: FeatureCase, sms: int) -> None:
    few_sms[0] = sms
    monkeypatch.setattr("features.IMPL", "flash_sm90")
    fc.api.CACHE.clear()
    check(case)


@pytest.mark.skipif(not is_emulated(), reason="the GPU chooses its own order")
@CAUSAL
@pytest.mark.parametrize("head_dim", [64, 128])
def test_any_order_of_warps(hopper, monkeypatch, head_dim, causal) -> None:
    """Warps, copies and products proceed in random orders: none may pass another that it has to wait for."""
    monkeypatch.setattr(Device, "multiprocessors", property(lambda device: 1))
    q, k, v = (normal(i, 1, 2, s, head_dim) for i, s in enumerate((200, 400, 400)))
    found = set()
    for seed in range(1, 5):
        start_emulator(arch="sm_90", seed=seed)
        found.add(computed(q, k, v, F16, causal=causal)[0].tobytes())
    assert len(found) == 1


@HEAD_DIM
def test_values_past_the_end_of_a_sequence(hopper, head_dim) -> None:
    """What is in memory there is multiplied by 0, and may be no number."""
    q, k, v = (normal(i, n, 2, head_dim) for i, n in enumerate((90, 400, 400)))
    k[185:], v[185:] = np.inf, np.nan
    starts = np.array([0, 40, 90], np.int32), np.array([0, 200, 400], np.int32)
    used = np.array([185, 0], np.int32)
    out, lse = fc.attention_varlen(q, k, v, *starts, 50, 200, seqused_k=used, return_lse=True, impl="flash_sm90")
    true = reference.truth(*(x.swapaxes(0, 1)[None] for x in (q[:40], k[:185], v[:185])), head_dim**-0.5)
    np.testing.assert_allclose(out[:40].swapaxes(0, 1), true.o[0], atol=2e-3)
    assert not out[40:].any()
    assert (lse[:, 40:] == -np.inf).all()


@CAUSAL
@pytest.mark.parametrize("sms", [1, 3, 1000])
def test_packed_sequences_share_a_grid(few_sms, causal, sms) -> None:
    """More sequences than a warp has lanes, many of them empty: each has the bits that it has alone."""
    few_sms[0] = sms
    lengths_q = [0, 5, 200, 0, 70] + [0] * 40 + [64, 0, 1]
    lengths_k = [9, 0, 150, 0, 230] + [7] * 40 + [30, 0, 1]
    starts_q, starts_k = (np.cumsum([0, *x], dtype=np.int32) for x in (lengths_q, lengths_k))
    q, k, v = (normal(i, int(n[-1]), h, 64) for i, (n, h) in enumerate(((starts_q, 2), (starts_k, 1), (starts_k, 1))))
    options = {"causal": causal, "return_lse": True, "impl": "flash_sm90", "batch_invariant": True}
    out, lse = fc.attention_varlen(q, k, v, starts_q, starts_k, 200, 230, **options)
    for n in np.flatnonzero(lengths_q):
        rows, keys = (slice(x[n], x[n + 1]) for x in (starts_q, starts_k))
        if lengths_k[n]:
            alone = fc.attention(*(x[None] for x in (q[rows], k[keys], v[keys])), **options)
            assert alone[0].tobytes() == out[rows].tobytes()
            assert alone[1].tobytes() == lse[:, rows].tobytes()
        else:
            assert not out[rows].any()
            assert (lse[:, rows] == -np.inf).all()


@CAUSAL
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_bits_do_not_depend_on_the_rows_of_the_next_sequence(hopper, head_dim, causal) -> None:
    """A warp has rows of both, and moves origins for those of the second, whose scores rise with every tile."""
    first, keys = 40, 400
    q, k, v = (normal(i, n, 1, head_dim) for i, n in enumerate((first + keys, 2 * keys, 2 * keys)))
    q[first:, :, 0], k[keys:, :, 0] = 60, np.linspace(9, 0, keys)[:, None]
    k[:keys] += np.linspace(0.5, 0, keys)[:, None, None] * np.sign(q[0])
    starts = np.array([0, first, first + keys], np.int32), np.array([0, keys, 2 * keys], np.int32)
    options = {"causal": causal, "return_lse": True, "impl": "flash_sm90", "batch_invariant": True}
    out, lse = fc.attention_varlen(q, k, v, *starts, keys, keys, **options)
    alone, its_lse = fc.attention(*(x[None] for x in (q[:first], k[:keys], v[:keys])), **options)
    assert out[:first].tobytes() == alone.tobytes()
    assert lse[:, :first].tobytes() == its_lse.tobytes()


@CAUSAL
@HEAD_DIM
def test_scores_that_rise_with_every_tile(hopper, head_dim, causal) -> None:
    """Origins move by a lot with every tile, in one row more than in another."""
    q, k, v = (normal(i, 1, 1, s, head_dim) for i, s in enumerate((140, 400, 400)))
    k += np.linspace(0, 4, 400, dtype=np.float16)[::-1, None] * np.sign(k.mean(2, keepdims=True))
    q[:, :, ::2] += 1
    computed(q, k, v, F16, causal=causal)
