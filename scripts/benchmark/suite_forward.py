"""The fused kernel over the grid: 36 points, and six each in bf16, with grouped heads and on packed sequences."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import numpy as np

from flashcore_drv.dtypes import BF16, F16, DType

from . import timed
from .cases import Case, Pool, elements
from .conditions import SEED
from .suites import Run
from .timed import Bench

NEEDS = "gpu"
PACKAGES = ("torch", "flash-attn-4", "nvidia-cudnn-frontend")
PEERS = ("FA2", "cuDNN", "FA4", "cudnn-frontend")
TOKENS, WIDTH = 16384, 2048  # batch · seqlen, num_heads · head_dim
SEQLENS = (512, 1024, 2048, 4096, 8192, 16384)
METHOD = timed.METHOD | {
    "l2": "not flushed: q, k, v and o are 33 to 67 MB each, 201 to 268 MB a launch, several times any L2",
    "sizes": f"{TOKENS} tokens in batch · seqlen, num_heads · head_dim = {WIDTH}; grouped: 32 heads on 8, of 128",
    "varlen": "lengths log-uniform, from 64 to the row's largest, as many queries as keys, until the tokens are spent",
}


def mask(causal: bool) -> str:
    """The word for it in an id."""
    return "causal" if causal else "full"


def dense(head_dim: int, causal: bool, seqlen: int, dtype: DType = F16, heads: tuple[int, int] | None = None) -> Case:
    """A point of the grid."""
    num_heads, num_heads_kv = heads or (WIDTH // head_dim,) * 2
    grouped = f"-h{num_heads}kv{num_heads_kv}" if heads else ""
    return Case(
        f"d{head_dim}-{mask(causal)}-s{seqlen}{grouped}-{dtype}",
        TOKENS // seqlen,
        num_heads,
        num_heads_kv,
        seqlen,
        seqlen,
        head_dim,
        causal,
        dtype,
    )


def log_uniform_lengths(longest: int) -> tuple[int, ...]:
    """Lengths of sequences that hold TOKENS together, each log-uniform from 64 to `longest`, the last what is left."""
    rng = np.random.default_rng(SEED)
    lengths: list[int] = []
    while (left := TOKENS - sum(lengths)) > 0:
        lengths.append(min(left, int(np.exp(rng.uniform(np.log(64), np.log(longest))))))
    return tuple(lengths)


def packed(head_dim: int, causal: bool, longest: int) -> Case:
    """Sequences of different lengths."""
    lengths, heads = log_uniform_lengths(longest), WIDTH // head_dim
    name = f"d{head_dim}-{mask(causal)}-varlen{longest}-f16"
    return Case(name, len(lengths), heads, heads, max(lengths), max(lengths), head_dim, causal, F16, lengths)


GRID = [dense(*x) for x in product((64, 128, 256), (False, True), SEQLENS)]
MORE = [
    *(dense(d, causal, 4096, BF16) for d, causal in product((64, 128, 256), (False, True))),
    *(dense(128, causal, s, heads=(32, 8)) for causal, s in product((False, True), (1024, 4096, 16384))),
    *(packed(d, causal, 8192) for d, causal in product((64, 128, 256), (False, True))),
]
QUICK_SEQLENS = (512, 4096, 16384)


def cases(quick: bool) -> list[Case]:
    """The points; quick: three lengths of the grid, and one point in two of the others."""
    if not quick:
        return GRID + MORE
    return [case for case in GRID if case.seqlen_q in QUICK_SEQLENS] + MORE[1::2]


def ids(quick: bool) -> list[str]:
    """The rows."""
    return [case.id for case in cases(quick)]


def run(run: Run) -> None:
    """Measure what is wanted, one dtype's numbers at a time on the GPU."""
    todo = choose(run, cases(run.quick))
    bench = Bench(run, PEERS[:2] if run.quick else PEERS)
    names = iter(run.progress([case.id for case in todo]))
    for dtype in sorted({case.dtype for case in todo}, key=lambda d: d.name, reverse=True):
        mine = [case for case in todo if case.dtype is dtype]
        pool = Pool(bench.device, dtype, max(map(elements, mine)))
        for case, _ in zip(mine, names):
            run.record.add(bench.row(case, [pool.tensors(case)]))
        pool.free()
    bench.finish()


def choose(run: Run, cases: Iterable[Case]) -> list[Case]:
    """Those that are wanted, by dtype."""
    wanted = set(run.wanted(case.id for case in cases))
    return sorted((case for case in cases if case.id in wanted), key=lambda case: case.dtype is BF16)


lines = timed.lines
