"""From a problem and a GPU's compute capability to the kernels that solve it: a pure function of the catalog."""

from __future__ import annotations

from . import catalog, tma, tuned
from .catalog import CATALOG, KernelSpec
from .dtypes import DType
from .errors import InvalidArgument, Unsupported
from .problem import Problem
from .tuned import UNKNOWN_GPU, Gpu

IMPLS = ("auto", "flash", "flash_sm80", "flash_sm90", "unfused")

_ROW_WARPS_CROSSOVER = 1024  # keys; above it a single warp a row leaves the memory waiting


def select(problem: Problem, arch: int, impl: str = "auto", gpu: Gpu = UNKNOWN_GPU) -> tuple[KernelSpec, ...]:
    """The kernels of a problem, in the order in which they run.

    Parameters
    ----------
    problem : Problem
        What to compute.
    arch : int
        Compute capability of the GPU: 89 stands for 8.9.
    impl : str
        "flash": one fused kernel, "flash_sm80" of the families for every GPU, "flash_sm90" of those for Hopper's own
        instructions. "unfused": scores, softmax and values in three. "auto" is the fastest there is.
    gpu : Gpu
        Its name and its number of SMs, for choices by time: a :class:`flashcore_drv.Device` or a
        :class:`~flashcore_drv.tuned.GpuModel`.

    Raises
    ------
    InvalidArgument
        For an `impl` that does not exist.
    Unsupported
        If no built kernel solves the problem: what is required, what there is, what is missing.
    """
    if impl not in IMPLS:
        raise InvalidArgument(f"impl={impl!r}; allowed: {', '.join(map(repr, IMPLS))}")
    if impl != "unfused":
        return (select_flash(problem, arch, gpu, impl),)
    _check_unfused(problem)
    return (
        select_qk(problem.dtype, problem.head_dim, arch),
        select_softmax(problem.dtype, problem.seqlen_k, arch),
        select_pv(problem.dtype, problem.head_dim, arch),
    )


def _check_unfused(problem: Problem) -> None:
    """Raise Unsupported for what only the fused kernels do."""
    lacking = {
        f"window_size ({problem.window_left}, {problem.window_right})": problem.windowed and not problem.causal,
        f"softcap {problem.softcap}": problem.softcap != 0,
        "alibi_slopes": problem.alibi_batch_stride is not None,
        "bias": problem.bias is not None,
        "sinks": problem.sinks,
        "seqused_k": problem.seqused_k,
        "packed sequences": problem.varlen is not None,
        f"head_dim_v {problem.head_dim_v} beside head_dim {problem.head_dim}": problem.head_dim_v != problem.head_dim,
        "a length of 0": 0 in (problem.seqlen_q, problem.seqlen_k),
    }
    if missing := [name for name, wanted in lacking.items() if wanted]:
        raise Unsupported(
            f"unfused: required seqlen_q={problem.seqlen_q}, seqlen_k={problem.seqlen_k} and options; "
            "built: full and causal attention, one head_dim, lengths from 1; "
            f'missing: {", ".join(missing)}, which impl="flash" takes'
        )


def select_flash(problem: Problem, arch: int, gpu: Gpu, impl: str = "flash") -> KernelSpec:
    """The fused kernel of a problem; see :func:`select`. Raises Unsupported.

    On Hopper it is one that copies by TMA where the tensors allow it, but for small problems, where the kernel for
    those was measured to be faster.
    """
    _check_head_dims(problem, arch)
    if impl == "flash_sm80":
        return _select_sm80(problem, arch, gpu)
    missing = tma.lacking(problem, arch)
    if not missing and (impl == "flash_sm90" or not _narrow(problem)):
        return _select_sm90(problem, arch, gpu, impl)
    if impl == "flash_sm90":
        raise Unsupported(
            f"flash_fwd_tma: required q {problem.q.shape}, k {problem.k.shape}, dtype={problem.dtype}, sm_{arch}; "
            f"built: for sm_{catalog.HOPPER} alone, tensors with elements whose rows start on 16 bytes and whose "
            f'strides are from 0 to 2^40 bytes; missing: {"; ".join(missing)}, which impl="flash" takes'
        )
    return _select_sm80(problem, arch, gpu)


def _check_head_dims(problem: Problem, arch: int) -> None:
    """Raise Unsupported for what no fused kernel takes."""
    built = catalog.FLASH_HEAD_DIMS
    if max(problem.head_dim, problem.head_dim_v) > max(built):
        name = "head_dim" if problem.head_dim > max(built) else "head_dim_v"
        raise Unsupported(
            f"flash_fwd: required head_dim={problem.head_dim}, head_dim_v={problem.head_dim_v}, "
            f"dtype={problem.dtype}, sm_{arch}; built: head_dim and head_dim_v up to {max(built)} "
            f"({', '.join(map(str, built))}); missing: {name} {getattr(problem, name)}"
        )


def _size(problem: Problem, built: tuple[int, ...]) -> int:
    """The least of the built head_dims that holds both of the problem's."""
    return next(d for d in built if max(problem.head_dim, problem.head_dim_v) <= d)


def _narrow(problem: Problem) -> bool:
    """Whether Hopper's kernels, of 64 columns at least, would multiply zeros for what another does in fewer.

    With 32 columns and 4096 keys the sm_8x kernels took 0.97 (full) and 0.91 (causal) of their time on an H200; since
    Hopper's take P without a search, 1.04 and 1.01 on random values, 0.97 and 0.90 where scores rise with every tile
    (``benchmarks/nvidia-h200``, suite cliff).
    """
    size = _size(problem, catalog.FLASH_HEAD_DIMS)
    known = problem.one_length and not problem.sinks and not problem.scored and (problem.causal or not problem.windowed)
    if problem.batch_invariant:  # packed or not, a sequence has one kernel
        return False
    return size < min(catalog.TMA_HEAD_DIMS) and known and _plain(problem, size)


def _select_sm90(problem: Problem, arch: int, gpu: Gpu, impl: str) -> KernelSpec:
    """The kernel of a problem that TMA can express: one for Hopper, or unless `impl` asks for these a faster one."""
    if problem.scored:
        family = "flash_fwd_tma_scored"
    elif problem.causal:
        family = "flash_fwd_tma_causal"
    elif problem.windowed:
        family = "flash_fwd_tma_window"
    else:
        family = "flash_fwd_tma"
    size = _size(problem, catalog.TMA_HEAD_DIMS)
    if _plain(problem, size):
        small = "flash_fwd_small"
        if impl == "flash_sm90":
            family = _fastest(family, size, problem, arch, gpu, besides=small)
        elif family == "flash_fwd_tma" and not tuned.is_measured(family, size, arch, gpu):
            # the small kernel wherever it beats the other sm_8x kernel: there most SMs would have nothing to do
            family = small if _fastest("flash_fwd", size, problem, arch, gpu) == small else family
        else:
            family = _fastest(family, size, problem, arch, gpu)
    return _find(family, problem.dtype, f"d{size}", arch)


def _select_sm80(problem: Problem, arch: int, gpu: Gpu) -> KernelSpec:
    """The kernel of a problem on any GPU."""
    size = _size(problem, catalog.FLASH_HEAD_DIMS)
    if problem.scored:
        family = "flash_fwd_scored"
    elif not _plain(problem, size):
        family = "flash_fwd_general"
    elif problem.causal:
        family = "flash_fwd_causal"
    elif problem.windowed:
        family = "flash_fwd_window"
    else:
        family = "flash_fwd"
    return _find(_fastest(family, size, problem, arch, gpu), problem.dtype, f"d{size}", arch)


def _plain(problem: Problem, size: int) -> bool:
    """Whether the sm_8x kernels for aligned rows of `size` elements take q, k and v."""
    rows = max(x.row_stride for x in (problem.q, problem.k, problem.v))
    return problem.head_dim == problem.head_dim_v == size and problem.aligned and rows <= _LONGEST_ROW_STRIDE


def _fastest(family: str, size: int, problem: Problem, arch: int, gpu: Gpu, besides: str = "") -> str:
    """The family to take in the place of `family`, which solves the problem."""
    # alternatives take neither lengths nor sinks, and add in another order, which must not depend on the batch
    if problem.one_length and not problem.sinks and not problem.batch_invariant:
        return tuned.fastest(family, size, problem, arch, gpu, besides)
    return family


_LONGEST_ROW_STRIDE = 1 << 26  # elements: a thread's rows stay within 32 bits of bytes (cuda/attention/swizzle.cuh)


def select_qk(dtype: DType, head_dim: int, arch: int) -> KernelSpec:
    """The kernel of S = softmax_scale · Q @ Kᵀ. Raises Unsupported."""
    return _by_head_dim("qk_wmma", dtype, head_dim, arch)


def select_softmax(dtype: DType, seqlen_k: int, arch: int) -> KernelSpec:
    """The kernel of P = softmax(S). Raises Unsupported."""
    few, many = catalog.SOFTMAX_ROW_WARPS
    return _find("softmax", dtype, f"w{few if seqlen_k <= _ROW_WARPS_CROSSOVER else many}", arch)


def select_pv(dtype: DType, head_dim: int, arch: int) -> KernelSpec:
    """The kernel of O = P @ V. Raises Unsupported."""
    return _by_head_dim("pv_wmma", dtype, head_dim, arch)


def select_merge(dtype: DType, arch: int) -> KernelSpec:
    """The kernel that puts two results together. Raises Unsupported."""
    return _find("attention_merge", dtype, f"r{catalog.MERGE_ROWS}", arch)


def _by_head_dim(family: str, dtype: DType, head_dim: int, arch: int) -> KernelSpec:
    built = catalog.UNFUSED_HEAD_DIMS
    size = next((d for d in built if head_dim <= d), None)
    if size is None:
        raise Unsupported(
            f"{family}: required head_dim={head_dim}, dtype={dtype}, sm_{arch}; "
            f"built: head_dim up to {max(built)} ({', '.join(map(str, built))}); missing: head_dim {head_dim}"
        )
    return _find(family, dtype, f"d{size}", arch)


def _find(family: str, dtype: DType, size: str, arch: int) -> KernelSpec:
    """The kernel of these on a GPU of compute capability `arch`: no family has two for one GPU. Raises Unsupported."""
    for spec in catalog.kernels_of(arch):
        if (spec.family, spec.dtype, spec.size) == (family, dtype, size):
            return spec
    archs = sorted({s.arch for s in CATALOG if s.family == family})
    dtypes = sorted({s.dtype.name for s in CATALOG if s.family == family})
    raise Unsupported(
        f"{family}: required {size}, dtype={dtype}, sm_{arch}; built: dtypes {', '.join(dtypes)} for "
        f"sm_{min(archs, default=0)} and later; missing: a kernel for this combination"
    )
