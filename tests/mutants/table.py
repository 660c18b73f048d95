"""Bugs to plant in the kernels, one at a time: each must be caught by what the tests and the emulator check.

A mutant replaces a text that stands once in a source file (`nth` picks one of several). `stem` is the kernel in which
it is compiled and run. `ESCAPES` lists what cannot be caught, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

QK, QK128 = "qk_wmma_f16_d64_sm89", "qk_wmma_bf16_d128_sm89"
SOFTMAX, SOFTMAX_LONG = "softmax_f16_w1_sm89", "softmax_bf16_w8_sm89"
PV, PV128 = "pv_wmma_f16_d64_sm89", "pv_wmma_bf16_d128_sm89"

MATRIX, QK_SOURCE = "attention/matrix.cuh", "unfused/qk_wmma.cuh"
SOFTMAX_SOURCE, PV_SOURCE = "unfused/softmax.cuh", "unfused/pv_wmma.cuh"


@dataclass(frozen=True)
class Mutant:
    """A planted bug."""

    name: str
    stem: str
    source: str
    old: str
    new: str
    nth: int | None = None  # which occurrence; None: there must be exactly one


def _of(source: str, stem: str, *rows: tuple[str, ...]) -> list[Mutant]:
    """Rows of (name, old, new) or (name, old, new, nth)."""
    return [
        Mutant(f"{stem.split('_')[0]}: {name}", stem, source, old, new, int(rest[0]) if rest else None)
        for name, old, new, *rest in rows
    ]


MUTANTS: list[Mutant] = [
    # what all kernels share: matrices in global memory, tiles in shared memory
    *_of(
        MATRIX,
        QK,
        ("strides are not asked for alignment", "(t.batch_stride | t.head_stride | t.row_stride)", "0"),
        ("eight bytes pass for sixteen", "% 16 == 0", "% 8 == 0"),
        ("the batch has no stride", "batch * t.batch_stride", "0 * t.batch_stride"),
        ("the head has no stride", "head * t.head_stride", "0 * t.head_stride"),
        ("rows past the end are read", "row < rows ?", "true ?"),
        ("columns past the end are read", "max(0, min(kChunk, cols - col))", "kChunk"),
        ("a copy always reads 16 bytes", "valid * int(sizeof(T)))", "16)"),
        ("the slow path reads a whole chunk", "e < valid ? source[e]", "true ? source[e]"),
        ("rows and chunks are swapped", "r = chunk / kChunksARow, c = chunk % kChunksARow * kChunk", "r = chunk % kChunksARow, c = chunk / kChunksARow % kChunksARow * kChunk"),
        ("every other chunk stays empty", "i * THREADS + threadIdx.x;", "i * THREADS + threadIdx.x / 2 * 2;"),
        ("half the threads load", "for (int i = 0; i < ROWS * kChunksARow / THREADS; ++i) {", "for (int i = 0; i < ROWS * kChunksARow / THREADS; ++i) { if (threadIdx.x >= THREADS / 2) continue;"),
        ("the tile starts at row 0", "row = first_row + r, col = first_col + c;", "row = r, col = first_col + c;", "0"),
        ("rows past the end are written", "if (row >= rows || col >= cols) continue;", "if (col >= cols) continue;"),
        ("a vector is written across the end", "if (col + N <= cols) {", "if (true) {"),
        ("the last vector is written whole", "if (col + e < cols) *matrix.at", "*matrix.at"),
        ("one element of a vector is written N times", "x[e] = tile[r][c + e]", "x[e] = tile[r][c]"),
        ("padding is left out: banks collide", "COLS + 16 / sizeof(T)", "COLS"),
    ),
    *_of(
        MATRIX,
        PV128,
        ("columns start at 0", "col = first_col + c;", "col = c;", "0"),
        ("the last chunk is dropped", "i < ROWS * kChunksARow / THREADS; ++i", "i < ROWS * kChunksARow / THREADS - 1; ++i"),
    ),
    *_of(
        QK_SOURCE,
        QK,
        ("no barrier after the wait", "__syncthreads();  // Q_smem", "// Q_smem"),
        ("no barrier before the next copy", "__syncthreads();  // S_smem", "// S_smem"),
        ("waits for one group too few", "cp_async_wait<1>", "cp_async_wait<2>"),
        ("the groups of the loop are not closed", "ptx::cp_async_commit();\n            ptx::cp_async_wait", "ptx::cp_async_wait"),
        ("the stage never changes", "(tile - first_tile) % 2", "0 * tile"),
        ("the next tile goes to this stage", "smem.K[stage ^ 1]", "smem.K[stage]"),
        ("the next tile is this one", "(tile + 1) * BLOCK_KV", "tile * BLOCK_KV"),
        ("the last tile is not loaded", "if (tile + 1 < last_tile)", "if (tile + 2 < last_tile)"),
        ("accumulators are not zeroed", "wmma::fill_fragment(S_frag, 0.f);", ""),
        ("the last columns are not multiplied", "k < HEAD_DIM; k += 16", "k < HEAD_DIM - 16; k += 16"),
        ("K is not transposed", "wmma::col_major>", "wmma::row_major>"),
        ("Q comes from the wrong rows", "&smem.Q.at[warp_row][k]", "&smem.Q.at[warp_col][k]"),
        ("K comes from the wrong rows", "&smem.K[stage].at[warp_col][k]", "&smem.K[stage].at[warp_row][k]"),
        ("K comes from the other stage", "&smem.K[stage].at[warp_col][k]", "&smem.K[stage ^ 1].at[warp_col][k]"),
        ("the scale is left out", "S_frag.x[i] *= p.softmax_scale", "S_frag.x[i] *= 1.f"),
        ("S is stored transposed", "wmma::mem_row_major", "wmma::mem_col_major"),
        ("rows of S overlap", "S_frag, BLOCK_KV + 8", "S_frag, BLOCK_KV"),
        ("heads share keys in turns", "head / (p.num_heads / p.num_heads_kv)", "head % p.num_heads_kv"),
        ("every query head has keys of its own", "head / (p.num_heads / p.num_heads_kv)", "head"),
        ("groups of tiles overlap", "% col_groups * kTilesABlock", "% col_groups"),
        ("the last rows have no tile", "(p.seqlen_q + BLOCK_Q - 1) / BLOCK_Q", "max(1, p.seqlen_q / BLOCK_Q)"),
        ("the last keys have no tile", "(p.seqlen_k + BLOCK_KV - 1) / BLOCK_KV", "max(1, p.seqlen_k / BLOCK_KV)"),
        ("four warps make the same piece", "threadIdx.x / 32 / 4 * 16", "threadIdx.x / 32 / 8 * 16"),
        ("vectors are stored to unaligned rows", "if (S.aligned)", "if (true)"),
        ("Q is always the first tile", "load_tile<kThreads>(smem.Q, Q, first_row,", "load_tile<kThreads>(smem.Q, Q, 0,"),
        ("K ends where Q ends", "first_tile * BLOCK_KV, 0, p.seqlen_k", "first_tile * BLOCK_KV, 0, p.seqlen_q"),
        ("S goes to the first rows", "smem.S, first_row, tile", "smem.S, 0, tile", "0"),
        ("the batch is the head", "batch = index / p.num_heads", "batch = index % p.num_heads"),
    ),
    *_of(
        QK_SOURCE,
        QK128,
        ("only the first 64 columns are multiplied", "k < HEAD_DIM; k += 16", "k < 64; k += 16"),
        ("no barrier before the next copy, bf16", "__syncthreads();  // S_smem", "// S_smem"),
    ),
    *_of(
        SOFTMAX_SOURCE,
        SOFTMAX,
        ("causal is aligned to the top left", "int64_t(row) + p.seqlen_k - p.seqlen_q", "int64_t(row)"),
        ("a query does not see its own key", "min(last_key + 1,", "min(last_key,"),
        ("a query sees one key too many", "min(last_key + 1,", "min(last_key + 2,"),
        ("rows past the end are written", "inside = row < p.seqlen_q", "inside = true"),
        ("lse is written where none is wanted", "inside && p.lse.data != nullptr", "inside"),
        ("the sum is not rescaled", "l = l * exp_difference(m, m_new)", "l = l"),
        ("the other sum is not rescaled", "other_l * exp_difference(other_m, m_new)", "other_l"),
        ("the maximum is the last one", "m_new = fmaxf(m, other_m)", "m_new = other_m"),
        ("an empty row has an infinite origin", "return m == -INFINITY ? 0.f : m;", "return m;"),
        ("e is taken for 2", "(x - origin(m)) * kLog2E", "(x - origin(m))"),
        ("the maximum is not subtracted", "(x - origin(m)) * kLog2E", "x * kLog2E"),
        ("the last lanes are not merged", "lanes > 0; lanes /= 2", "lanes > 1; lanes /= 2"),
        ("the first lanes are not merged", "int lanes = 16;", "int lanes = 8;"),
        ("an empty row is divided by zero", "state.l == 0.f ? 0.f : 1.f / state.l", "1.f / state.l"),
        ("the row is not normalised", "state.l == 0.f ? 0.f : 1.f / state.l", "1.f"),
        ("scores past the visible are read", "if (key + N <= visible) {", "if (key < visible) {"),
        ("scores past the row are read", "x[e] = key + e < visible ?", "x[e] = true ?"),
        ("a vector is written across the end", "if (key + N <= keys) {", "if (true) {"),
        ("keys past the visible are left out", "key < keys; key +=", "key < visible; key +="),
        ("lse forgets the maximum", "state.m + logf(state.l)", "logf(state.l)"),
        ("alignment of P is not asked for", "S.aligned && P.aligned ?", "S.aligned ?"),
        ("without a mask the last key is missing", ": p.seqlen_k;\n", ": p.seqlen_k - 1;\n"),
        ("every row is row 0", "threadIdx.x / kRowThreads;\n        const int head", "0;\n        const int head"),
        ("sums are added by atomics", "state.merge(m, l);", "static __shared__ float total;\n            atomicAdd(&total, l);\n            state.merge(m, total);"),
    ),
    *_of(
        SOFTMAX_SOURCE,
        SOFTMAX_LONG,
        ("no barrier between the warps of a row", "__syncthreads();  // the state of every warp", "// the state of every warp"),
        ("the last warp is not merged", "w < ROW_WARPS; ++w", "w < ROW_WARPS - 1; ++w"),
        ("all warps use one place", "smem.m[threadIdx.x / 32] = state.m", "smem.m[threadIdx.x % 32] = state.m"),
        ("keys are visited more than once", "key < visible; key += kRowThreads * N", "key < visible; key += 32 * N"),
    ),
    *_of(
        PV_SOURCE,
        PV,
        ("no barrier after the wait", "__syncthreads();  // P_smem", "// P_smem"),
        ("no barrier before the next copy", "__syncthreads();  // every warp has read", "// every warp has read"),
        ("no barrier before O is written out", "__syncthreads();  // O_smem", "// O_smem"),
        ("waits for one group too few", "cp_async_wait<1>", "cp_async_wait<2>"),
        ("waits for nothing", "ptx::cp_async_wait<1>();", ""),
        ("the groups of the loop are not closed", "ptx::cp_async_commit();\n            ptx::cp_async_wait", "ptx::cp_async_wait"),
        ("all tiles go to one stage", "Stage& stage = smem.stages[tile % 2];\n            load", "Stage& stage = smem.stages[0];\n            load"),
        ("always the first stage is multiplied", "const Stage& stage = smem.stages[tile % 2];", "const Stage& stage = smem.stages[0];"),
        ("the next tile is this one", "load(tile + 1);", "load(tile);"),
        ("accumulators are not zeroed", "wmma::fill_fragment(O_frag[n], 0.f);", ""),
        ("the sum starts anew at every tile", "const Stage& stage = smem.stages[tile % 2];\n", "const Stage& stage = smem.stages[tile % 2];\n            wmma::fill_fragment(O_frag[0], 0.f);\n"),
        ("the last keys of a tile are dropped", "k < BLOCK_KV; k += 16", "k < BLOCK_KV - 16; k += 16"),
        ("V is transposed", "T, wmma::row_major> V_frag", "T, wmma::col_major> V_frag"),
        ("V comes from the wrong columns", "&stage.V.at[k][warp_col", "&stage.V.at[k][warp_row"),
        ("P comes from the wrong rows", "&stage.P.at[warp_row][k]", "&stage.P.at[warp_col][k]"),
        ("the last tile is left out", "tile < tiles; ++tile", "tile < max(1, tiles - 1); ++tile"),
        ("V ends where P's rows end", "tile * BLOCK_KV, 0, p.seqlen_k", "tile * BLOCK_KV, 0, p.seqlen_q"),
        ("values of the wrong head", "head / (p.num_heads / p.num_heads_kv)", "0"),
        ("O is stored transposed", "wmma::mem_row_major", "wmma::mem_col_major"),
        ("vectors are stored to unaligned rows", "if (O.aligned)", "if (true)"),
        ("P is always the first rows", "load_tile<kThreads>(stage.P, P, first_row,", "load_tile<kThreads>(stage.P, P, 0,"),
    ),
    *_of(
        PV_SOURCE,
        PV128,
        ("both pieces are the first", "&stage.V.at[k][warp_col + 16 * n]", "&stage.V.at[k][warp_col]"),
        ("pieces of O overlap", "&smem.O[warp_row][warp_col + 16 * n]", "&smem.O[warp_row][warp_col]"),
        ("only the first piece is multiplied", "wmma::mma_sync(O_frag[n], P_frag, V_frag, O_frag[n]);", "if (n == 0) wmma::mma_sync(O_frag[n], P_frag, V_frag, O_frag[n]);"),
    ),
]  # fmt: skip

ESCAPES = {
    "from_float rounds toward zero instead of to nearest": "within the allowed error: twice the same maths' plus an ulp",
    "a row's offset is computed in 32 bits": "shows above 2^31 elements only; tests/test_unfused.py runs that on a GPU",
    "a block goes on past the last tile": "loads are zero-filled and stores are masked there: it costs time alone",
    "store_tile does not ask whether a vector starts past the end": "each of its elements is asked for itself",
    "ex2.approx is less exact than on the emulator": "the emulator rounds it correctly; the GPU run of the tests sees it",
    "the missing volatile or memory clobber of an asm": "nvcc is free to move it and may not: the PTX is then right",
}
