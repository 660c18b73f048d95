"""From problem and GPU to kernels: the choice fits, or the refusal says what is missing. No CUDA in it."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import python_says

from flashcore_drv import catalog, dispatch, tuned
from flashcore_drv.catalog import CATALOG
from flashcore_drv.dtypes import BF16, F16, F32
from flashcore_drv.errors import InvalidArgument, Unsupported
from flashcore_drv.plan import ROWS_IN_FLIGHT, contiguous
from flashcore_drv.problem import UNBOUNDED, Bias, Matrices, Packed, Problem
from flashcore_drv.schedule import heads_in_a_group
from flashcore_drv.tuned import GpuModel

SUPPORTED_ARCHS = (80, 86, 87, 89, 90, 100, 120)
ON_ANY_GPU = ("auto", "flash", "flash_sm80")
LARGEST_HEAD_DIM, LARGEST_FUSED_HEAD_DIM = max(catalog.UNFUSED_HEAD_DIMS), max(catalog.FLASH_HEAD_DIMS)

lengths = st.integers(1, 4096) | st.sampled_from([1, 1023, 1024, 1025, 65_536, 1 << 30])
dtypes = st.sampled_from([F16, BF16])


def problem_of(
    batch, num_heads_kv, group, seqlen_q, seqlen_k, head_dim, dtype, causal, aligned=True, head_dim_v=None, **features
) -> Problem:
    q = contiguous(batch, num_heads_kv * group, seqlen_q, head_dim)
    k = contiguous(batch, num_heads_kv, seqlen_k, head_dim)
    v, o = (contiguous(*x.shape[:3], head_dim_v or head_dim) for x in (k, q))
    features = {"window_right": 0 if causal else UNBOUNDED, "aligned": aligned} | features
    return Problem(q, k, v, o, dtype, head_dim**-0.5, **features)


def problems(head_dims):
    small = st.integers(1, 8)
    return st.builds(problem_of, small, small, small, lengths, lengths, head_dims, dtypes, st.booleans(), st.booleans())


biases = st.builds(
    lambda dtype, col_stride: Bias(dtype, contiguous(1, 1, 1, 1), col_stride),
    st.sampled_from([F16, BF16, F32]),
    st.integers(0, 1),
)
sides = st.just(UNBOUNDED) | st.integers(0, 5000)


legal = problems(st.integers(1, LARGEST_HEAD_DIM // 8).map(lambda n: 8 * n))
too_wide = problems(st.integers(LARGEST_HEAD_DIM // 8 + 1, 64).map(lambda n: 8 * n))


fused = problems(st.integers(1, LARGEST_FUSED_HEAD_DIM // 8).map(lambda n: 8 * n))
too_wide_for_fused = problems(st.integers(LARGEST_FUSED_HEAD_DIM // 8 + 1, 64).map(lambda n: 8 * n))


@given(
    problem=fused,
    arch=st.sampled_from(SUPPORTED_ARCHS),
    impl=st.sampled_from(ON_ANY_GPU),
    sms=st.integers(1, 200),
)
def test_the_fused_kernel_fits_the_problem_and_the_gpu(problem, arch, impl, sms) -> None:
    impl = "flash_sm80" if arch == catalog.HOPPER else impl
    (spec,) = dispatch.select(problem, arch, impl, GpuModel(multiprocessors=sms))
    assert spec in CATALOG
    assert spec.dtype is problem.dtype
    assert spec.arch == max(a for a in catalog.PTX_ARCHS if a <= arch)
    built = int(spec.size.removeprefix("d"))
    assert problem.head_dim <= built
    assert not [d for d in catalog.FLASH_HEAD_DIMS if problem.head_dim <= d < built], "a smaller one would do"
    if not problem.aligned or problem.head_dim < built:
        assert spec.family == "flash_fwd_general"
    else:
        assert spec.family in (("flash_fwd_causal",) if problem.causal else ("flash_fwd", "flash_fwd_small"))


@given(
    data=st.data(),
    left=sides,
    right=sides,
    head_dim=st.integers(1, LARGEST_FUSED_HEAD_DIM // 8).map(lambda n: 8 * n),
    head_dim_v=st.integers(1, LARGEST_FUSED_HEAD_DIM // 8).map(lambda n: 8 * n),
    aligned=st.booleans(),
    arch=st.sampled_from(SUPPORTED_ARCHS),
    invariant=st.booleans(),
)
def test_every_feature_gets_a_kernel_that_has_it(
    data, left, right, head_dim, head_dim_v, aligned, arch, invariant
) -> None:
    """And no more than it has to: terms of the scores, any layout, a window, or none of these."""
    head_dim_v = data.draw(st.sampled_from([head_dim, head_dim_v]))
    scored = data.draw(st.booleans())
    terms = {
        "softcap": data.draw(st.sampled_from([0.0, 30.0])),
        "alibi_batch_stride": data.draw(st.sampled_from([None, 0, 2])),
        "bias": data.draw(st.none() | biases),
    }
    problem = problem_of(
        2, 1, 2, 100, 200, head_dim, F16, False, aligned, head_dim_v,
        window_left=left, window_right=right, sinks=data.draw(st.booleans()), seqused_k=data.draw(st.booleans()),
        varlen=data.draw(st.none() | st.just(Packed(150, 250))), batch_invariant=invariant, **terms if scored else {},
    )  # fmt: skip
    (spec,) = dispatch.select(problem, arch, "flash_sm80")
    built = int(spec.size[1:])
    assert built == min(d for d in catalog.FLASH_HEAD_DIMS if d >= max(head_dim, head_dim_v))
    if problem.scored:
        assert spec.family == "flash_fwd_scored"
    elif not aligned or head_dim != built or head_dim_v != built:
        assert spec.family == "flash_fwd_general"
    elif left == UNBOUNDED and right == UNBOUNDED:
        plain = not (invariant or problem.sinks or problem.seqused_k or problem.varlen)
        assert spec.family in ("flash_fwd", "flash_fwd_small")[: 2 if plain else 1]
    elif left == UNBOUNDED and right == 0:
        assert spec.family == "flash_fwd_causal"
    else:
        assert spec.family == "flash_fwd_window"


@given(dtype=dtypes, arch=st.sampled_from(SUPPORTED_ARCHS))
def test_the_merge_has_a_kernel(dtype, arch) -> None:
    spec = dispatch.select_merge(dtype, arch)
    assert spec in CATALOG
    assert (spec.family, spec.dtype, spec.arch) == ("attention_merge", dtype, catalog.ptx_arch(arch))


def test_the_merge_is_refused_below_the_lowest_arch() -> None:
    with pytest.raises(Unsupported, match=r"attention_merge: required r32, dtype=f16, sm_75; built: .*; missing: "):
        dispatch.select_merge(F16, 75)


def test_a_head_dim_v_beyond_the_fused_kernels_is_refused() -> None:
    problem = problem_of(1, 1, 1, 8, 8, 64, F16, False, head_dim_v=264)
    with pytest.raises(Unsupported, match=r"required head_dim=64, head_dim_v=264, .*; missing: head_dim_v 264"):
        dispatch.select(problem, 89)


def test_rows_too_far_apart_for_32_bits_get_the_general_kernel() -> None:
    m = Matrices(1, 1, 2, 64, 0, 0, (1 << 26) + 8)
    (spec,) = dispatch.select(Problem(m, m, m, m, F16, 0.125), 89)
    assert spec.stem == "flash_fwd_general_f16_d64_sm89"


@pytest.mark.parametrize(("heads", "seqlen", "family"), [(8, 512, "flash_fwd_small"), (64, 512, "flash_fwd")])
def test_few_blocks_get_the_kernel_of_few_rows(heads, seqlen, family) -> None:
    problem = problem_of(1, heads, 1, seqlen, seqlen, 64, F16, False)
    (spec,) = dispatch.select(problem, 90, "flash_sm80", GpuModel("", 132))
    assert spec.family == family


# ---- Hopper's own kernels


@given(
    data=st.data(),
    left=sides,
    right=sides,
    head_dim=st.integers(1, LARGEST_FUSED_HEAD_DIM // 8).map(lambda n: 8 * n),
    head_dim_v=st.integers(1, LARGEST_FUSED_HEAD_DIM // 8).map(lambda n: 8 * n),
    dtype=dtypes,
)
def test_hopper_gets_its_own_kernel_of_every_feature(data, left, right, head_dim, head_dim_v, dtype) -> None:
    head_dim_v = data.draw(st.sampled_from([head_dim, head_dim_v]))
    terms = data.draw(st.sampled_from([{}, {}, {"softcap": 30.0}, {"alibi_batch_stride": 0}, {"bias": BIAS}]))
    features = {
        "sinks": data.draw(st.booleans()),
        "seqused_k": data.draw(st.booleans()),
        "varlen": data.draw(st.none() | st.just(Packed(150, 250))),
        "batch_invariant": data.draw(st.booleans()),
    }
    problem = problem_of(
        2, 1, 2, 100, 200, head_dim, dtype, False, True, head_dim_v,
        window_left=left, window_right=right, **terms, **features,
    )  # fmt: skip
    (spec,) = dispatch.select(problem, 90, "flash_sm90")
    assert (spec.target, spec.dtype) == ("90a", dtype)
    assert int(spec.size[1:]) == min(d for d in catalog.TMA_HEAD_DIMS if d >= max(head_dim, head_dim_v))
    if problem.scored:
        assert spec.family == "flash_fwd_tma_scored"
    elif left == UNBOUNDED and right in (UNBOUNDED, 0):
        whole = "flash_fwd_tma_causal" if right == 0 else "flash_fwd_tma"
        assert spec.family in set(tuned.ALTERNATIVES[whole]) & catalog.TMA_VARIANTS.keys()
    else:
        assert spec.family == "flash_fwd_tma_window"


BIAS = Bias(F32, contiguous(1, 1, 1, 1), 1)


WHOLE = problem_of(2, 1, 2, 200, 200, 128, F16, False)


@pytest.mark.parametrize("impl", ["auto", "flash"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_right": 0},
        {"batch_invariant": True},
        {"dtype": BF16},
        {"window_left": 9},
        {"sinks": True},
        {"softcap": 9.0},
        {"seqused_k": True},
        {"varlen": Packed(150, 250)},
        {"q": replace(WHOLE.q, rows=100), "o": replace(WHOLE.o, rows=100)},
        {x: replace(getattr(WHOLE, x), cols=120) for x in "qkvo"},
    ],
)
def test_hopper_gets_its_own_kernels_by_default(impl, changes) -> None:
    (spec,) = dispatch.select(replace(WHOLE, **changes), 90, impl)
    assert spec.target == "90a"


@pytest.mark.parametrize(
    ("changes", "target"),
    [
        ({}, "89"),
        ({"window_right": 0}, "89"),
        ({"window_left": 9}, "90a"),
        ({"sinks": True}, "90a"),
        ({"softcap": 9.0}, "90a"),
    ],
)
def test_hopper_gets_the_narrow_kernels_of_others(changes, target) -> None:
    """Where there are as plain ones as Hopper's own, which have 64 columns at least."""
    narrow = replace(problem_of(2, 1, 32, 2000, 2000, 32, F16, False), **changes)
    (spec,) = dispatch.select(narrow, 90)
    assert (spec.target, spec.size) == (target, "d32" if target == "89" else "d64")
    (spec,) = dispatch.select(narrow, 90, "flash_sm90")
    assert spec.target == "90a"


def strided(**strides) -> Problem:
    """Two sequences of three heads of k and v with 64 columns, and of k these strides (in elements)."""
    problem = problem_of(2, 3, 2, 100, 200, 64, F16, False)
    return replace(problem, k=replace(problem.k, **strides))


CANNOT = {
    "unaligned": (
        problem_of(1, 1, 1, 100, 200, 64, F16, False, aligned=False),
        "rows of q, k, v or out that do not start on 16 bytes",
    ),
    "no keys": (problem_of(1, 2, 1, 100, 0, 64, F16, False), "k of 1 x 2 x 0 x 64 elements; v of 1 x 2 x 0 x 64"),
    "no queries": (problem_of(1, 2, 1, 0, 200, 64, F16, False), "q of 1 x 2 x 0 x 64 elements"),
    "no sequences": (problem_of(0, 2, 1, 100, 200, 64, F16, False), "q of 0 x 2 x 100 x 64 elements"),
    "packed, no keys": (
        problem_of(3, 2, 1, 100, 200, 64, F16, False, varlen=Packed(5, 0)),
        "k of 1 x 2 x 0 x 64 elements",
    ),
    "backwards": (strided(row_stride=-64), "k with a rows stride of -128 bytes"),
    "far": (strided(batch_stride=1 << 39), f"k with a batch stride of {1 << 40} bytes"),
}  # fmt: skip


@pytest.mark.parametrize("why", CANNOT)
def test_what_tma_cannot_express_gets_a_kernel_for_every_gpu(why) -> None:
    problem, missing = CANNOT[why]
    for impl in ON_ANY_GPU:
        (spec,) = dispatch.select(problem, 90, impl)
        assert spec.target == "89"
    with pytest.raises(Unsupported) as refusal:
        dispatch.select(problem, 90, "flash_sm90")
    required, built, said = re.fullmatch(
        r'flash_fwd_tma: required (.*); built: (.*); missing: (.*), which impl="flash" takes', str(refusal.value)
    ).groups()
    assert f"q {problem.q.shape}, k {problem.k.shape}, dtype=f16, sm_90" in required
    assert "for sm_90 alone" in built
    assert missing in said
    assert "sm_90" not in said


@pytest.mark.parametrize(
    "strides",
    [{"batch_stride": 0}, {"head_stride": 0}, {"row_stride": 0}, {"row_stride": 8}, {"head_stride": (1 << 39) - 8}],
    ids=str,
)
def test_what_tma_can_express(strides) -> None:
    """Broadcast dimensions, rows that overlap, and the longest stride."""
    (spec,) = dispatch.select(strided(**strides), 90, "flash_sm90")
    assert spec.target == "90a"


def test_strides_along_a_dimension_of_one_are_not_looked_at() -> None:
    m = Matrices(1, 1, 1, 64, 0, 0, 0)
    (spec,) = dispatch.select(Problem(m, m, m, m, F16, 0.125), 90, "flash_sm90")
    assert spec.target == "90a"


@given(problem=fused, arch=st.sampled_from([a for a in SUPPORTED_ARCHS if a != catalog.HOPPER]))
def test_other_gpus_have_none_of_them(problem, arch) -> None:
    (spec,) = dispatch.select(problem, arch)
    assert spec.target == str(catalog.ptx_arch(arch))
    with pytest.raises(Unsupported, match=rf'built: for sm_90 alone.*; missing: sm_{arch}.*, which impl="flash" takes'):
        dispatch.select(problem, arch, "flash_sm90")


@given(problem=fused, sms=st.integers(1, 200), name=st.sampled_from(["", "NVIDIA H200"]))
def test_a_batch_invariant_choice_of_hopper_depends_on_nothing_else(problem, sms, name) -> None:
    fixed = replace(problem, batch_invariant=True)
    (spec,) = dispatch.select(fixed, 90, "flash", GpuModel(name, sms))
    assert dispatch.select(fixed, 90, "flash") == (spec,)


@given(problem=too_wide_for_fused, arch=st.sampled_from(SUPPORTED_ARCHS))
def test_a_head_dim_beyond_the_fused_kernels_is_refused(problem, arch) -> None:
    with pytest.raises(Unsupported, match=rf"flash_fwd: required head_dim={problem.head_dim}, .*; missing: head_dim"):
        dispatch.select(problem, arch)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(0, 5), (5, 0)])
def test_unfused_refuses_a_length_of_zero(seqlen_q, seqlen_k) -> None:
    with pytest.raises(Unsupported, match="missing: a length of 0"):
        dispatch.select(problem_of(1, 1, 1, seqlen_q, seqlen_k, 64, F16, False), 89, "unfused")


@given(problem=legal, arch=st.sampled_from(SUPPORTED_ARCHS))
def test_the_unfused_kernels_fit_the_problem_and_the_gpu(problem, arch) -> None:
    impl = "unfused"
    chosen = dispatch.select(problem, arch, impl)
    assert [spec.family for spec in chosen] == ["qk_wmma", "softmax", "pv_wmma"]
    for spec in chosen:
        assert spec in CATALOG
        assert spec.dtype is problem.dtype
        assert spec.arch == max(a for a in catalog.PTX_ARCHS if a <= arch)
    qk, softmax, pv = chosen
    assert qk.size == pv.size
    built = int(qk.size.removeprefix("d"))
    assert problem.head_dim <= built
    assert not [d for d in catalog.UNFUSED_HEAD_DIMS if problem.head_dim <= d < built], "a smaller one would do"
    assert int(softmax.size.removeprefix("w")) in catalog.SOFTMAX_ROW_WARPS
    assert dispatch.select(problem, arch, impl) == chosen


@given(problem=legal, arch=st.sampled_from(SUPPORTED_ARCHS))
def test_stages_alone_get_the_same_kernels(problem, arch) -> None:
    assert dispatch.select(problem, arch, "unfused") == (
        dispatch.select_qk(problem.dtype, problem.head_dim, arch),
        dispatch.select_softmax(problem.dtype, problem.seqlen_k, arch),
        dispatch.select_pv(problem.dtype, problem.head_dim, arch),
    )


@given(dtype=dtypes, arch=st.sampled_from(SUPPORTED_ARCHS), a=lengths, b=lengths)
def test_longer_rows_never_get_fewer_warps(dtype, arch, a, b) -> None:
    few, many = (int(dispatch.select_softmax(dtype, n, arch).size[1:]) for n in sorted((a, b)))
    assert few <= many


@given(problem=too_wide, arch=st.sampled_from(SUPPORTED_ARCHS))
def test_a_refused_head_dim_says_required_built_and_missing(problem, arch) -> None:
    with pytest.raises(Unsupported) as refusal:
        dispatch.select(problem, arch, "unfused")
    required, built, missing = re.fullmatch(
        r"qk_wmma: required (.*); built: (.*); missing: (.*)", str(refusal.value)
    ).groups()
    assert f"head_dim={problem.head_dim}" in required
    assert f"dtype={problem.dtype}" in required
    assert f"sm_{arch}" in required
    assert all(str(d) in built for d in catalog.UNFUSED_HEAD_DIMS)
    assert str(problem.head_dim) in missing


@given(
    problem=legal,
    arch=st.sampled_from([50, 61, 70, 75, 79]),
    impl=st.sampled_from([x for x in dispatch.IMPLS if x != "flash_sm90"]),
)
def test_a_gpu_below_the_lowest_arch_is_refused(problem, arch, impl) -> None:
    with pytest.raises(Unsupported) as refusal:
        dispatch.select(problem, arch, impl)
    required, built, _ = re.fullmatch(r"\w+: required (.*); built: (.*); missing: (.*)", str(refusal.value)).groups()
    assert f"sm_{arch}" in required
    assert f"dtype={problem.dtype}" in required
    assert f"sm_{min(catalog.PTX_ARCHS)} and later" in built
    assert "f16" in built


@given(problem=legal, arch=st.sampled_from(SUPPORTED_ARCHS))
def test_what_the_catalog_does_not_list_is_refused(problem, arch) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "CATALOG", tuple(s for s in CATALOG if s.dtype is not problem.dtype))
        patch.setattr(catalog, "kernels_of", lambda arch: dispatch.CATALOG)
        with pytest.raises(Unsupported) as refusal:
            dispatch.select(problem, arch)
    other = {F16: "bf16", BF16: "f16"}[problem.dtype]
    assert f"dtype={problem.dtype}" in str(refusal.value)
    assert f"built: dtypes {other} " in str(refusal.value)


@pytest.mark.parametrize("impl", ["fused", "", "Auto", None, 1, ["auto"]])
def test_an_unknown_impl_is_refused(impl) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        dispatch.select(problem_of(1, 1, 1, 1, 1, 64, F16, False), 89, impl)
    assert f"impl={impl!r}" in str(refusal.value)
    assert all(repr(allowed) in str(refusal.value) for allowed in dispatch.IMPLS)


def test_problem_catalog_and_dispatch_need_no_cuda() -> None:
    code = """
import sys
sys.modules["cuda"] = sys.modules["flashcore_drv.emulator"] = None
from flashcore_drv import abi, catalog, dispatch, problem
from flashcore_drv.dtypes import F16
from flashcore_drv.plan import contiguous
m = contiguous(1, 1, 1, 64)
print(*(s.stem for s in dispatch.select(problem.Problem(m, m, m, m, F16, 0.125), 89)))
"""
    assert python_says(code).split() == ["flash_fwd_small_f16_d64_sm89"]


@given(problem=fused, least=st.integers(0, 40), l2_bytes=st.integers(0, 1 << 28))
def test_groups_of_heads_divide_them_and_fit_the_cache(problem, least, l2_bytes) -> None:
    heads = problem.batch * problem.num_heads
    group = heads_in_a_group(problem, least, l2_bytes)
    assert heads % group == 0
    assert heads // group < 1 << 16
    sides = (problem.k.cols + problem.v.cols) * problem.dtype.itemsize * problem.num_heads_kv
    if group < heads:
        assert group == 1 or group * problem.seqlen_k * sides <= l2_bytes * 2 / 3 * problem.num_heads
        assert group >= least


@pytest.mark.parametrize(
    ("head_dim", "seqlen", "group"),
    [
        (256, 512, 64),
        (256, 2048, 64),
        (128, 512, 128),
        (128, 2048, 32),
        (128, 4096, 64),
        (64, 1024, 128),
        (64, 8192, 64),
    ],
)
def test_groups_of_heads_on_an_h200(head_dim, seqlen, group) -> None:
    """What was measured to be the fastest or within 1 % of it (cuda/NOTES.md): 16 k tokens, 2048 columns."""
    heads = 2048 // head_dim
    problem = problem_of(16384 // seqlen, heads, 1, seqlen, seqlen, head_dim, F16, True)
    assert heads_in_a_group(problem, 132 // ROWS_IN_FLIGHT, 50 << 20) == group
