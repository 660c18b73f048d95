"""Bugs to plant in the kernels, one at a time: each must be caught by what the tests and the emulator check.

A mutant replaces a text that stands once in a source file (`nth` picks one of several). `stem` is the kernel in which
it is compiled and run. `ESCAPES` lists what cannot be caught, with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

QK, QK128 = "qk_wmma_f16_d64_sm89", "qk_wmma_bf16_d128_sm89"
SOFTMAX, SOFTMAX_LONG = "softmax_f16_w1_sm89", "softmax_bf16_w8_sm89"
PV, PV128 = "pv_wmma_f16_d64_sm89", "pv_wmma_bf16_d128_sm89"
FLASH, FLASH128 = "flash_fwd_f16_d64_sm89", "flash_fwd_bf16_d128_sm89"
FLASH32 = "flash_fwd_f16_d32_sm89"
PAIRED, CAUSAL_PAIRED = "flash_fwd_bf16_d192_sm89", "flash_fwd_causal_f16_d256_sm89"
CAUSAL, CAUSAL32 = "flash_fwd_causal_f16_d64_sm89", "flash_fwd_causal_f16_d32_sm89"
SMALL, GENERAL = "flash_fwd_small_f16_d64_sm89", "flash_fwd_general_f16_d64_sm89"
SMALL_HOPPER = "flash_fwd_small_f16_d64_sm90a"
WINDOW, SCORED = "flash_fwd_window_f16_d64_sm89", "flash_fwd_scored_f16_d64_sm89"
WINDOW192 = "flash_fwd_window_bf16_d192_sm89"
MERGE = "attention_merge_f16_r32_sm89"
TMA, TMA_CAUSAL = "flash_fwd_tma_f16_d64_sm90a", "flash_fwd_tma_causal_bf16_d128_sm90a"
TMA_CAUSAL64 = "flash_fwd_tma_causal_f16_d64_sm90a"
TMA_FEW = "flash_fwd_tma_causal_few_f16_d64_sm90a"

MATRIX, QK_SOURCE = "attention/matrix.cuh", "unfused/qk_wmma.cuh"
SOFTMAX_SOURCE, PV_SOURCE = "unfused/softmax.cuh", "unfused/pv_wmma.cuh"
FLASH_SOURCE, RANGE, MASK = "flash_fwd/flash_fwd_sm80.cuh", "attention/block_range.cuh", "attention/mask.cuh"
PRODUCTS, SWIZZLE = "attention/products.cuh", "attention/swizzle.cuh"
PAIRED_SOURCE, PLACE = "flash_fwd/paired_warps.cuh", "flash_fwd/place.cuh"
ONLINE, COMBINE = "attention/softmax.cuh", "attention/combine.cuh"
SEQUENCE, NORMALISE = "attention/sequence.cuh", "attention/normalise.cuh"
SCORES, BIAS, TANH = "attention/scores.cuh", "attention/bias.cuh", "attention/tanh.cuh"
MERGE_SOURCE = "flash_fwd/merge.cuh"
PRODUCER, CONSUMER, EPILOGUE = (f"flash_fwd/{x}_sm90.cuh" for x in ("producer", "consumer", "epilogue"))
STAGES, ROW_BLOCKS, WGMMA = "flash_fwd/stages_sm90.cuh", "flash_fwd/row_blocks.cuh", "ptx/wgmma.cuh"
ROLES, SCHEDULER = "flash_fwd/flash_fwd_sm90.cuh", "flash_fwd/scheduler_sm90.cuh"
LAUNCH_ORDER = "ptx/launch_order.cuh"


@dataclass(frozen=True)
class Mutant:
    """A planted bug."""

    name: str
    stem: str
    source: str
    old: str
    new: str
    nth: int | None = None  # which occurrence; None: there must be exactly one


def family_of(stem: str) -> str:
    """What its kernels have in common: qk, softmax, pv, or a family of the fused forward, pairs of warps apart."""
    family = re.split("(?:_wmma)?_b?f16_", stem)[0]
    return f"{family}_paired" if stem in (PAIRED, CAUSAL_PAIRED) else family


def _of(source: str, stem: str, *rows: tuple[str, ...]) -> list[Mutant]:
    """Rows of (name, old, new) or (name, old, new, nth)."""
    return [
        Mutant(f"{family_of(stem)}: {name}", stem, source, old, new, int(rest[0]) if rest else None)
        for name, old, new, *rest in rows
    ]


MUTANTS: list[Mutant] = [
    # what all kernels share: matrices in global memory, tiles in shared memory
    *_of(
        MATRIX,
        QK,
        ("strides are not asked for alignment", "(t.batch_stride | t.head_stride | t.row_stride)", "0"),
        ("eight bytes pass for sixteen", "% 16 == 0", "% 8 == 0"),
        ("the batch has no stride", "unsigned(batch) * t.batch_stride", "0 * t.batch_stride"),
        ("the head has no stride", "unsigned(head) * t.head_stride", "0 * t.head_stride"),
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
    # the fused forward: Q, K and V in shared memory, their copies and waits
    *_of(
        FLASH_SOURCE,
        FLASH,
        ("no barrier before Q is read", "__syncthreads();  // Q_smem is", "// Q_smem is"),
        ("Q is not waited for", "ptx::cp_async_wait<1>();\n            __syncthreads();  // Q_smem is", "__syncthreads();  // Q_smem is"),
        ("no barrier in the loop", "__syncthreads();  // K_smem (with", "// K_smem (with"),
        ("a tile is not waited for", "ptx::cp_async_wait<0>();\n                __syncthreads();  // K_smem (with", "__syncthreads();  // K_smem (with"),
        ("the group of Q and K is not closed", "ptx::cp_async_commit();\n            V_loader.load_tail(last * BLOCK_KV, stage(last), rows.seqlen_k);\n            ptx", "V_loader.load_tail(last * BLOCK_KV, stage(last), rows.seqlen_k);\n            ptx"),
        ("the group of V is not closed", "ptx::cp_async_commit();\n            ptx::cp_async_wait<1>();\n            __syncthreads();  // Q_smem is", "ptx::cp_async_wait<1>();\n            __syncthreads();  // Q_smem is"),
        ("the groups of the loop are not closed", "ptx::cp_async_commit();\n\n                if constexpr (kFolded", "if constexpr (kFolded"),
        ("the next K goes to this stage", "loader.load((tile - 1) * BLOCK_KV, stage(tile - 1));\n        }", "loader.load((tile - 1) * BLOCK_KV, stage(tile));\n        }"),
        ("V comes from the other stage", "multiply_pv<T, 0, KEYS>(O, P, V, stage(tile))", "multiply_pv<T, 0, KEYS>(O, P, V, stage(tile + 1))"),
        ("the first tile is left out", "tile >= (BAND == Band::kWindow", "tile > (BAND == Band::kWindow"),
        ("accumulators are not zeroed", "O[t][d][e] = 0.f;", "(void)0;"),
        ("every query head has keys of its own", "divide(head, p.group)", "head"),
        ("rows past the end are written", "if (row < rows.seqlen_q && (!kGeneral || col < p.head_dim_v))", "if (true)"),
        ("chunks of O are stored to the wrong columns", "8 * (i + lane % 4)", "8 * (i + (lane + 1) % 4)"),
        ("lse is written where none is wanted", "if (p.lse.data == nullptr) return;", ""),
        ("lse of rows past the end is written", "if (row < rows.seqlen_q && lane % 4 == 0 &&", "if (lane % 4 == 0 &&"),
    ),
    *_of(
        FLASH_SOURCE,
        GENERAL,  # one stage
        ("no barrier before V is read", "__syncthreads();  // V_smem", "// V_smem"),
        ("V is not waited for", "ptx::cp_async_wait<0>();\n                    __syncthreads();  // V_smem", "__syncthreads();  // V_smem"),
        ("no barrier before the next V", "__syncthreads();  // K_smem (with", "// K_smem (with"),
        ("the next K's group is not closed", "ptx::cp_async_commit();\n                }\n                // O", "}\n                // O"),
    ),
    *_of(
        FLASH_SOURCE,
        WINDOW192,  # one stage
        ("V of the last tile is read again, past its end", "if (tile < last) V_loader", "V_loader"),
    ),
    *_of(
        FLASH_SOURCE,
        FLASH32,  # one loop
        ("the first tile of all is left out", "tile >= 0; --tile) step.template operator()<Masked::kPerhaps>", "tile > 0; --tile) step.template operator()<Masked::kPerhaps>"),
        ("no tile is masked", "(tile >= tiles.masked ||", "(false ||"),
    ),
    *_of(
        SWIZZLE,
        FLASH128,
        ("columns past 64 are read from the first", "+ 2 * step / kSpan * kSpan * 16 +", "+"),
    ),
    *_of(
        SWIZZLE,
        FLASH,
        ("chunks are not permuted: banks collide", "kSpan == 8 ? row & 7", "kSpan == 8 ? 0"),
        ("copies are not permuted", "target(tile + Layout::offset(thread / kSpan, thread % kSpan))", "target(tile + thread / kSpan * Layout::kPitch + thread % kSpan * 16)"),
        ("reads are not permuted", "base(tile + Layout::offset(row, chunk))", "base(tile + row * Layout::kPitch + chunk * 16)"),
        ("a row past the end is read", "first_row + row < rows - step", "first_row + row <= rows - step"),
    ),
    *_of(
        PRODUCTS,
        FLASH,
        ("V is not transposed", "ldmatrix_x4_trans", "ldmatrix_x4"),
        ("fragments of K are swapped", "Q_frag[t], K_frag[2 * n], K_frag[2 * n + 1]", "Q_frag[t], K_frag[n], K_frag[n + 2]"),
        ("fragments of V are swapped", "V_frag[2 * n], V_frag[2 * n + 1]", "V_frag[n], V_frag[n + 2]"),
        ("scores are added to what was there", "mma_m16n8k16_from_zero", "mma_m16n8k16"),
        ("lanes trade with the wrong lanes", "high ? a : c, 2)", "high ? a : c, 1)"),
    ),
    *_of(
        RANGE,
        FLASH,
        ("the last key is left out", "return seqlen_k;", "return seqlen_k - 1;"),
        ("one key too many", "return seqlen_k;", "return seqlen_k + 1;"),
        ("the last keys have no tile", "end((keys + BLOCK_KV - 1) / BLOCK_KV)", "end(keys / BLOCK_KV)"),
    ),
    *_of(
        ONLINE,
        FLASH,
        ("l is not rescaled", "l[t][h] *= rescale;", ""),
        ("half of O is not rescaled", "O[t][d][2 * h + 1] *= rescale;", ""),
        ("an origin never moves again", "next = fmaxf(m[t][h], quad_max(peak[t][h]) * scale)", "next = m[t][h] > kNoOrigin ? m[t][h] : quad_max(peak[t][h]) * scale"),
        ("an origin may fall", "next = fmaxf(m[t][h], quad_max(peak[t][h]) * scale)", "next = quad_max(peak[t][h]) * scale"),
        ("speculation is accepted although too large", "4096.f;", "1e9f;"),
        ("each lane decides on speculation for itself", "if (!__all_sync(0xffffffffu, fits))", "if (!fits)"),
        ("accepted sums replace the others", "l[t][h] += sum[t][h];", "l[t][h] = sum[t][h];"),
        ("refused sums count", "if (!__all_sync(0xffffffffu, fits)) return false;", "const bool all = __all_sync(0xffffffffu, fits);"),
        ("refused sums are accepted", "if (!__all_sync(0xffffffffu, fits)) return false;", "__all_sync(0xffffffffu, fits);"),
        ("the maximum misses two lanes", "return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2))", "return x"),
        ("the sum misses two lanes", "return x + __shfl_xor_sync(0xffffffffu, x, 2)", "return x"),
    ),
    *_of(
        MASK,
        FLASH,
        ("a lane masks its neighbour's columns", "lane % 4 * 2;", "lane % 4;"),
    ),
    *_of(
        ONLINE,
        CAUSAL,
        ("each lane decides for itself whether to speculate", "__all_sync(0xffffffffu, seen)", "seen"),
        ("an empty row has an infinite origin", "kNoOrigin = -FLT_MAX", "kNoOrigin = -INFINITY"),
    ),
    # causal: the diagonal and the tiles that it needs
    *_of(
        RANGE,
        CAUSAL,
        ("causal is aligned to the top left", "? row + last + 1", "? row + 1"),
        ("a query does not see its own key", "? row + last + 1", "? row + last"),
        ("a query sees one key too many", "? row + last + 1", "? row + last + 2"),
        ("tiles end where the first row does", "limit.end(last_row)", "limit.end(first_row)"),
        ("the first masked tile is not masked", ") / BLOCK_KV) {}", ") / BLOCK_KV + 1) {}"),
    ),
    *_of(
        FLASH_SOURCE,
        CAUSAL32,  # folded rows have skipped it already
        ("a skipped tile is added all the same", "if (MASKED == Masked::kNo || !outside(tile)) multiply_pv", "multiply_pv"),
    ),
    *_of(
        MASK,
        CAUSAL32,
        ("the last visible key is masked", ">= end", ">= end - 1"),
        ("a key too many is visible", ">= end", "> end"),
    ),
    *_of(
        FLASH_SOURCE,
        CAUSAL,
        ("the loop of masked tiles ends early", "tile >= tiles.masked; --tile", "tile > tiles.masked; --tile"),
        ("a warp skips tiles that its last rows see", "warp_row + LAST * rows_apart() + 15 + limit.last", "warp_row + LAST * rows_apart() + limit.last"),
        ("blocks without keys make a tile", "if (tiles.end > 0) warp.run", "warp.run"),
    ),
    # small: S of the next tile between P and O of this one, and warps that share rows
    *_of(
        FLASH_SOURCE,
        SMALL,
        ("no barrier before the first tile", "__syncthreads();  // Q_smem and", "// Q_smem and"),
        ("the first tile is not waited for", "ptx::cp_async_wait<1>();\n            __syncthreads();  // Q_smem and", "__syncthreads();  // Q_smem and"),
        ("no barrier in the loop", "__syncthreads();  // K of the next", "// K of the next"),
        ("a tile is not waited for", "ptx::cp_async_wait<0>();\n                __syncthreads();  // K of the next", "__syncthreads();  // K of the next"),
        ("the groups of the loop are not closed", "ptx::cp_async_commit();\n                }\n                softmax.settle", "}\n                softmax.settle"),
        ("K travels to the stage in use", "K_loader.load((tile - 2) * BLOCK_KV, stage(tile))", "K_loader.load((tile - 2) * BLOCK_KV, stage(tile - 1))"),
        ("K is read before its beginning", "if (tile > 1) K_loader", "K_loader"),
        ("the next S is made of this K", "multiply_qk<T, FIRST, SLICE>(S, Q, K, stage(tile - 1))", "multiply_qk<T, FIRST, SLICE>(S, Q, K, stage(tile))"),
        ("the last tile is masked as the one before", "mask(S, limit, warp_row, rows_apart(), first_key(last));", "mask(S, limit, warp_row, rows_apart(), first_key(last - 1));"),
        ("both warps have the mask of the first keys", "tile * BLOCK_KV + key_warp * KEYS", "tile * BLOCK_KV"),
    ),
    *_of(
        COMBINE,
        SMALL,
        ("no barrier before parts are added", "__syncthreads();  // parts and state", "// parts and state"),
        ("a part of l is left out", "l += part[w].y * factor[w][h];", "l = part[w].y * factor[w][h];"),
        ("parts of l are not rescaled", "part[w].y * factor[w][h]", "part[w].y"),
        ("half of O's parts are not rescaled", "sum[0] += part.x * factor[w][0]", "sum[0] += part.x"),
        ("parts of O are rescaled as those of other rows", "sum[3] += part.w * factor[w][1]", "sum[3] += part.w * factor[w][0]"),
        ("the maximum is the last one", "m = fmaxf(m, part[w].x);", "m = part[w].x;"),
        ("a part of O is left out", "sum[3] += part.w", "sum[3] = part.w"),
        ("warps store to columns that overlap", "return key_warp * kOwnTiles * 8;", "return key_warp * kOwnTiles;"),
    ),
    *_of(
        FLASH_SOURCE,
        SMALL_HOPPER,
        ("the kernel before is not waited for", "ptx::wait_for_prerequisites();  // no earlier", "// no earlier"),
        ("Q is asked for before the kernel before has ended", "ptx::wait_for_prerequisites();  // no earlier", "Loader<BLOCK_Q, kThreads>(Q_gmem, shared + kQAt, threadIdx.x, p.head_dim).load_tail(first_row, 0, rows.seqlen_q); ptx::wait_for_prerequisites();  //"),
    ),
    # general: any alignment and head_dim
    *_of(
        SWIZZLE,
        GENERAL,
        ("columns past head_dim are read", "&& chunk * 8 < head_dim", ""),
        ("rows past the end are read", "valid = first_row + r < rows &&", "valid ="),
        ("unaligned rows are copied as vectors", "if (matrix.aligned) {", "if (true) {"),
        ("what is not there is not zeroed", "cp_async_16(target, from, valid ? 16 : 0)", "cp_async_16(target, from, 16)"),
    ),
    *_of(
        FLASH_SOURCE,
        GENERAL,
        ("unaligned rows are stored as vectors", "TILES % 4 == 0 && (!kGeneral || O_gmem.aligned)", "TILES % 4 == 0"),
        ("unaligned rows are stored as pairs", "!kGeneral || O_gmem.aligned);", "true);"),
        ("columns past head_dim are written as vectors", "(!kGeneral || col < p.head_dim_v)", "true"),
        ("columns past head_dim are written as pairs", "(!kGeneral || first_col + 8 * i < p.head_dim_v)", "true"),
    ),
    # which rows and which head a block makes
    *_of(
        PLACE,
        FLASH,
        ("heads are counted over all batches", "batch_head - batch * p.num_heads.value", "batch_head"),
        ("blocks and heads are swapped", "p.row_blocks - 1 - outer : inner", "p.row_blocks - 1 - outer : outer"),
        ("heads are counted fastest", ": outer;", ": inner;"),
    ),
    # folded rows: a warp's second tile of rows is far from its first
    *_of(
        FLASH_SOURCE,
        CAUSAL,
        ("the folded rows are those of the next warp", "2 * kTiling.row_warps - 1 - 2 * row_warp", "2 * kTiling.row_warps - 2 - 2 * row_warp"),
        ("Q is not folded in shared memory", ".template load_tail<kFolded>(first_row, 0, rows.seqlen_q);", ".template load_tail<false>(first_row, 0, rows.seqlen_q);"),
        ("a warp whose later rows see a tile leaves it out", "if (!outside(tile)) later_rows(tile);", ""),
        ("the earlier rows see what the later ones do", "if (outside<0>(tile)) {", "if (outside<0>(tile + 1)) {"),
        ("the later rows are not masked", "mask<1>(S, limit, warp_row, rows_apart(), first_key(tile));", ""),
        ("the later rows are masked as their neighbours", "mask<1>(S, limit, warp_row, rows_apart(), first_key(tile));", "mask<1>(S, limit, warp_row, 16, first_key(tile));"),
    ),
    *_of(
        SWIZZLE,
        CAUSAL,
        ("the end is folded in order", "2 * (kSteps - i) - 1", "2 * i - kSteps + 1"),
    ),
    *_of(
        SWIZZLE,
        FLASH128,
        ("pointers do not step", "at -= ROWS * sizeof(T) * matrix.row_stride;", ""),
        ("pointers step in rows", "at -= ROWS * sizeof(T) * matrix.row_stride;", "at -= ROWS * sizeof(T);"),
    ),
    *_of(
        PLACE,
        CAUSAL,
        ("the first rows have no block", "p.row_blocks - 1 - outer", "p.row_blocks - outer"),
        ("heads are counted over all rows", "block.x - outer * p.grid_inner.value", "block.x"),
        ("every group's heads are the first one's", "block.y * p.grid_inner.value + inner", "inner"),
        ("groups count all heads", "block.y * p.grid_inner.value", "block.y * p.num_heads.value * 2"),
    ),
    *_of(
        FLASH_SOURCE,
        FLASH,
        ("every block stores the first one's rows", "ptx::block_index_again()", "ptx::BlockIndex{0, 0}"),
        ("results end where the first sequence does", "its_rows = sequence(p, again.batch)", "its_rows = sequence(p, 0)"),
    ),
    # pairs of warps: P and the factors of O travel between them
    *_of(
        PAIRED_SOURCE,
        PAIRED,
        ("no barrier in the loop", "__syncthreads();  // P and V", "// P and V"),
        ("a tile is not waited for", "ptx::cp_async_wait<0>();\n", ""),
        ("the last K is not waited for", "ptx::cp_async_wait<1>();\n", ""),
        ("the groups of the loop are not closed", "stage(tile));\n        ptx::cp_async_commit();", "stage(tile));"),
        ("K travels to the stage in use", "K_loader.load((tile - 2) * KEYS, stage(tile))", "K_loader.load((tile - 2) * KEYS, stage(tile - 1))"),
        ("K is read before its beginning", "if (tile > 1) K_loader", "K_loader"),
        ("queries past the end are read", "min(first_row + 8 * h + lane / 4, rows - 1)", "first_row + 8 * h + lane / 4"),
        ("halves of a step of Q are swapped", "held[2 * i][0][h] = y.x, held[2 * i][0][2 + h] = y.y", "held[2 * i][0][h] = y.y, held[2 * i][0][2 + h] = y.x"),
        ("the last tile is not masked", "last >= masked", "false"),
        ("both halves of P are this warp's", "smem.P[tile & 1][pair][t]", "smem.P[tile & 1][pair][half]"),
        ("fragments of V are one late", "V_frag[i % 2][2 * n], V_frag[i % 2][2 * n + 1]", "V_frag[(i + 1) % 2][2 * n], V_frag[(i + 1) % 2][2 * n + 1]"),
        ("O is not rescaled", "if (RESCALE && i < kSteps)", "if (false)"),
        ("O is rescaled with every 16 keys", "if (RESCALE && i < kSteps)", "if (RESCALE)"),
        ("moves of the other warp's rows are not asked for", "if (moved[0] || moved[1])", "if (moved[half])"),
        ("a warp is silent about its moves", "[half] = moved;", "[half] = false;"),
        ("factors of earlier moves count again", "moved[t] ? smem.row[tile & 1][pair][t][8 * h + lane / 4] : 1.f", "smem.row[tile & 1][pair][t][8 * h + lane / 4]"),
        ("the other rows' factors are this warp's", "moved[t] ? smem.row[tile & 1][pair][t]", "moved[t] ? smem.row[tile & 1][pair][half]"),
        ("factors of O are one stage late", "if (moved) publish(tile & 1", "if (moved) publish(~tile & 1"),
        ("no barrier before the factors of the end", "__syncthreads();      // smem.row", "// smem.row"),
        ("the end's factors are the other stage's", "factor = smem.row[1]", "factor = smem.row[0]"),
        ("both warps store the same columns", "16 * half + lane % 2 * 8", "lane % 2 * 8"),
        ("rows past the end are written", "if (row < rows.seqlen_q) *", "*"),
        ("lse of rows past the end is written", "if (row < rows.seqlen_q && p.lse.data", "if (p.lse.data"),
        ("every sequence's lse goes to the first rows", "place.head, rows.first_q)", "place.head)"),
        ("all heads have the first one's sink", "p.sinks[place.head]", "p.sinks[0]"),
    ),
    *_of(
        PAIRED_SOURCE,
        CAUSAL_PAIRED,
        ("a pair's first tile is that of its first row", "pair_row, pair_row + 31).end", "pair_row, pair_row).end"),
        ("a pair copies its own tiles alone", "copy(tile, K_loader, V_loader);", "if (sees(tile)) copy(tile, K_loader, V_loader);"),
        ("a pair waits for its own tiles alone", "await();\n            if", "if (sees(tile)) await();\n            if"),
        ("a pair adds a tile that it has not made", "if (sees(tile)) values", "values"),
        ("a pair without keys adds the first tile", "if (sees(0)) values", "values"),
        ("tiles are masked for the pair's last row", "Tiles(limit, warp_row, warp_row).masked", "Tiles(limit, pair_row + 31, pair_row + 31).masked"),
        ("only the first tile is masked", "tile - 1 >= masked", "false"),
    ),
    *_of(
        ONLINE,
        CAUSAL_PAIRED,
        ("each lane decides for itself whether origins move", "if (!__any_sync(0xffffffffu, grown))", "if (!grown)"),
        ("P may exceed float16", "kHeadroom = 8.f", "kHeadroom = 80.f"),
        ("origins move for the last rows alone", "grown |= fmaf", "grown = fmaf"),
    ),
    *_of(
        PLACE,
        PAIRED,
        ("blocks of rows overlap", "row_block * BLOCK_Q", "row_block * BLOCK_Q / 2"),
    ),
    # packed sequences and lengths from memory
    *_of(
        SEQUENCE,
        FLASH,
        ("every sequence begins at the first query", "first_q = clamp(all.cu_seqlens_q[batch], 0, all.total_q)", "first_q = 0"),
        ("every sequence begins at the first key", "first_k = clamp(all.cu_seqlens_k[batch], 0, all.total_k)", "first_k = 0"),
        ("a sequence may begin before the first key", "first_k = clamp(all.cu_seqlens_k[batch], 0, all.total_k)", "first_k = min(all.cu_seqlens_k[batch], all.total_k)"),
        ("a sequence may end after the last query", "clamp(all.cu_seqlens_q[batch + 1], first_q, all.total_q)", "max(all.cu_seqlens_q[batch + 1], first_q)"),
        ("all keys are used", "seqlen_k = clamp(all.seqused_k[batch], 0, seqlen_k)", "(void)0"),
        ("more keys may be used than there are", "clamp(all.seqused_k[batch], 0, seqlen_k)", "max(all.seqused_k[batch], 0)"),
    ),
    *_of(
        FLASH_SOURCE,
        FLASH,
        ("every sequence's result goes to the first rows", "again.head, its_rows.first_q)", "again.head)"),
        ("every sequence's lse goes to the first rows", "place.head, rows.first_q)", "place.head)"),
        ("values of the next sequence are read", "V_loader.load_tail(last * BLOCK_KV, stage(last), rows.seqlen_k);\n            ptx", "V_loader.load_tail(last * BLOCK_KV, stage(last), p.sequences.total_k - rows.first_k);\n            ptx"),
        ("all heads have the first one's sink", "p.sinks[place.head]", "p.sinks[0]"),
    ),
    *_of(
        NORMALISE,
        FLASH,
        ("the sink does not count", "ptx::exp2_approx((sink - origin) * kLog2E))", "0.f)"),
        ("O keeps the origin of its scores", "__fdividef(rescale, total)", "__fdividef(1.f, total)"),
        ("l keeps the origin of its scores", "fmaf(l, rescale,", "fmaf(l, 1.f,"),
        ("lse is in base 2", "origin + logf(total)", "origin + log2f(total)"),
        ("a row without keys is divided by zero", "factor = total == 0.f ? 0.f :", "factor ="),
    ),
    # windows: a first key as well as a last one
    *_of(
        MASK,
        WINDOW,
        ("the first visible key is masked", "8 * n + e < begin", "8 * n + e <= begin"),
        ("a key too many is visible on the left", "8 * n + e < begin", "8 * n + e + 1 < begin"),
    ),
    *_of(
        RANGE,
        WINDOW,
        ("the window ends at the diagonal", "min(diagonal + window_right, kFar)", "diagonal"),
        ("the window begins at the diagonal", "max(diagonal - window_left, -kFar)", "diagonal"),
        ("a tile that is cut on the left is not masked", "limit.begin(last_row)) + BLOCK_KV - 1)", "limit.begin(last_row)))"),
        ("tiles are left out that the first row sees", "limit.begin(first_row)) / BLOCK_KV", "limit.begin(first_row) + 16) / BLOCK_KV"),
    ),
    *_of(
        SEQUENCE,
        WINDOW,
        ("keys that are left out come all the same", "rest.first_k += n;", ""),
    ),
    *_of(
        FLASH_SOURCE,
        WINDOW,
        ("a warp skips tiles whose first keys it does not see", "first_key(tile) + KEYS <= warp_row + limit.first", "first_key(tile) <= warp_row + limit.first"),
    ),
    # terms of the scores
    *_of(
        SCORES,
        SCORED,
        ("scores have no scale", "s *= scale_log2;", ""),
        ("distances have a sign", "fabsf(distance + float(row - key))", "(distance + float(row - key))"),
        ("distances are counted from the first key", "float(rows.seqlen_k - rows.seqlen_q + first_row", "float(first_row"),
        ("all sequences have the first one's slopes", "batch * terms.alibi_batch_stride", "0 * terms.alibi_batch_stride"),
    ),
    *_of(
        TANH,
        SCORED,
        ("tanh has no sign", "copysignf(large, x)", "large"),
        ("a coefficient of tanh is wrong", "0.13331442f", "0.13f"),
    ),
    *_of(
        BIAS,
        SCORED,
        ("a bias in base e", "fmaf(to_float(x.second), kLog2E,", "fmaf(to_float(x.second), 1.f,"),
        ("a bias begins at the first key that is seen", "bias.data += int64_t(rows.first_k) * terms.bias_col_stride;", ""),
        ("pairs are read past the last key", "if (inside && terms.bias_pairs)", "if (terms.bias_pairs)"),
        ("pairs are read wherever they lie", "if (inside && terms.bias_pairs)", "if (inside)"),
        ("a bias past the last query is read", "min(first_row + 16 * t + 8 * h + lane / 4, rows.seqlen_q - 1)", "first_row + 16 * t + 8 * h + lane / 4"),
        ("a bias past the last key is read", "min(key + 1, rows.seqlen_k - 1)", "(key + 1)"),
    ),
    *_of(
        FLASH_SOURCE,
        GENERAL,
        ("V has as many columns as K", "V_loader(V_gmem, shared + kVAt, threadIdx.x, p.head_dim_v)", "V_loader(V_gmem, shared + kVAt, threadIdx.x, p.head_dim)", "0"),
    ),
    # Hopper's own instructions
    *_of(
        PRODUCER,
        TMA,
        ("values past the end of a sequence stay", "keys < BLOCK_KV && (packed", "false && (packed"),
        ("the first value past the end stays", "128 * rows + 16", "128 * (rows + 1) + 16"),
        ("K is copied over a tile in use", "ptx::mbarrier_wait(shared.k_empty(ring.stage), ring.parity ^ 1);", ""),
        ("V is copied over a tile in use", "ptx::mbarrier_wait(shared.v_empty(ring.stage), ring.parity ^ 1);", "", "0"),
        ("an empty stage has the parity of a full one", "shared.k_empty(ring.stage), ring.parity ^ 1)", "shared.k_empty(ring.stage), ring.parity)"),
        ("Q is copied over rows in use", "if (first_lane) ptx::mbarrier_wait(shared.q_empty(i, buffer), tasks / Shared::kQBuffers & 1 ^ 1);", ""),
        ("all warpgroups have the first one's rows", "first_row + 64 * i", "first_row"),
        ("every query head has keys of its own", "divide(task.place.head, p.group)", "task.place.head"),
        ("packed sequences are batches", "packed ? 0 : task.place.batch", "task.place.batch"),
        ("zeros are not fenced before wgmma reads them", "ptx::fence_proxy_async();", ""),
        ("a task is not waited for", "if (tasks > 0) ptx::mbarrier_wait(shared.task_full(tasks), tasks / Shared::kTasks & 1);", ""),
    ),
    *_of(
        SCHEDULER,
        TMA,
        ("a task is written over the one in use", "ptx::mbarrier_wait(shared.task_empty(tasks), tasks / Shared::kTasks & 1 ^ 1);", ""),
        ("there is no last task", "publish({{}, 0, 0, 0, 0, -1});", ""),
    ),
    *_of(
        ROLES,
        TMA,
        ("the loading warpgroup keeps registers that others need", "give_up_registers<kLoadingRegisters>", "give_up_registers<kLoadingRegisters + 8>"),
        ("no registers are given up", "ptx::give_up_registers<kLoadingRegisters>();", ""),
    ),
    *_of(
        LAUNCH_ORDER,
        TMA,
        ("the kernel before is not waited for", 'asm volatile("griddepcontrol.wait;" ::: "memory");', ""),
    ),
    *_of(
        ROLES,
        TMA_CAUSAL,
        ("the multiplying warpgroups ask for more registers than there are", "take_registers<kMultiplyingRegisters>", "take_registers<kMultiplyingRegisters + 8>"),
    ),
    *_of(
        CONSUMER,
        TMA,
        ("O stays where an origin moves", "O[0][d][e] *= rescale[0][e / 2];", ";"),
        ("P that does not fit stays", "if (softmax.accept(sum)) return;", "softmax.accept(sum); return;"),
        ("the sums of P that fit are left out", "if (softmax.accept(sum)) return;", "if (sum[0][0] < 4096.f && sum[0][1] < 4096.f) return;"),
        ("O begins with that of other rows", "j > 0 || o_begun", "true"),
        ("S is used before it is there", "ptx::wgmma_wait<BEFORE == Before::kNothing ? 0 : 1>();", ""),
        ("O is used before it is there", "ptx::wgmma_wait<0>();", ""),
        ("K is never given back", "give_back(shared.k_empty(at.stage));", ""),
        ("Q is never given back", "if (tile == 0) give_back(shared.q_empty(warpgroup, q_buffer));", ""),
        ("K is multiplied before it is there", "ptx::mbarrier_wait(shared.k_full(at.stage), at.parity);", ""),
        ("V is multiplied before it is there", "ptx::mbarrier_wait(shared.v_full(ring.stage), ring.parity);", "", "0"),
        ("the last tile has no mask", "tile >= own.masked ||", "tile > own.masked ||"),
        ("a row block begins with the sums of another", "if (BEFORE != Before::kSameRows) softmax = OnlineSoftmax<1>();", ""),
        ("the last row block is not finished", "if (pending) finish(shared.task(n - 1));", ""),
        ("a task is never given back", "give_back(shared.task_empty(n - 1));", "", "0"),
        ("all warpgroups wait for one turn", "named_barrier_sync(1 + warpgroup, 256)", "named_barrier_sync(1, 256)"),
    ),
    *_of(
        CONSUMER,
        TMA_CAUSAL64,
        ("a tile that is skipped stays full", "give_back(shared.v_empty(ring.stage));", "", "1"),
        ("rows without keys have a first tile", "own.end == task.end && own.end > 0", "own.end == task.end"),
        ("keys that are skipped stay full", "give_back(shared.k_empty(ring.stage));", ""),
    ),
    *_of(
        CONSUMER,
        TMA_FEW,
        ("half a tile is left out that is seen", "own.keys <= tile * BLOCK_KV + kHalf", "own.keys <= tile * BLOCK_KV + kHalf + 8"),
        ("P of what is left out is that of another tile", "P[j][0][e] = 0;", ";"),
    ),
    *_of(
        EPILOGUE,
        TMA,
        ("rows past the end are written", "if (first_row + row < task.seqlen_q && col", "if (col"),
        ("lse of rows past the end is written", "lane % 4 == 0 && row < task.seqlen_q", "lane % 4 == 0"),
        ("chunks of a row are not permuted", "(chunk ^ (row % 8)) * 16", "chunk * 16"),
    ),
    *_of(
        ROW_BLOCKS,
        TMA,
        ("every other round is left out", "step = 2 * gridDim.x - step;", "step = 2 * gridDim.x;"),
    ),
    *_of(
        ROW_BLOCKS,
        TMA_CAUSAL,
        ("the second of a pair is left out", "if (params.schedule.paired) second = !second;", ""),
    ),
    *_of(
        STAGES,
        TMA,
        ("one task at a time", "kTasks = 4", "kTasks = 1"),
        ("one warp gives a stage back for all", "empty < kTaskSign ? 4 * kWarpgroups", "empty < kTaskSign ? kWarpgroups"),
    ),
    *_of(
        WGMMA,
        TMA_CAUSAL,
        ("columns of V are 64", "uint64_t(tile_bytes >> 4) << 16", "uint64_t(1) << 16"),
    ),
    # the merge
    *_of(
        MERGE_SOURCE,
        MERGE,
        ("rows past the end are read", "if (index >= p.rows) return;", ""),
        ("both parts weigh the same", "w_b = expf(b - origin)", "w_b = w_a"),
        ("an empty row has an infinite origin", "empty ? 0.f : fmaxf(a, b)", "fmaxf(a, b)"),
        ("an empty row is divided by zero", "inverse = empty ? 0.f :", "inverse ="),
        ("lse is that of the larger part", "origin + logf(w_a + w_b)", "origin"),
        ("the second part's alignment is not asked for", "out_a.aligned && out_b.aligned &&", "out_a.aligned &&"),
        ("the last columns are left out", "col < p.head_dim_v; col +=", "col + 64 < p.head_dim_v; col +="),
    ),
]  # fmt: skip

ESCAPES = {
    "from_float rounds toward zero instead of to nearest": "within the allowed error: twice the same maths' plus an ulp",
    "a row's offset is computed in 32 bits": "shows above 2^31 elements only; tests/test_unfused.py runs that on a GPU",
    "a block goes on past the last tile": "loads are zero-filled and stores are masked there: it costs time alone",
    "store_tile does not ask whether a vector starts past the end": "each of its elements is asked for itself",
    "speculation with a row that has no origin yet": "its P are infinite, so it is refused: it costs time alone",
    "speculation goes on after it has failed": "it is refused and done again: it costs time alone",
    "a pair of warps does not tell the compiler that its first tile is uniform": "it is: it costs registers alone",
    "a pair of warps makes S of a tile that it does not see": "all of it is masked: it costs time alone",
    "rows of a pair whose origins did not move are rescaled by 1": "the same result: it costs time alone",
    "blocks of rows start with the first, not the longest": "another order of the same blocks: it costs time alone",
    "tiles for rows past seqlen_q of a causal block": "they are masked for all rows that are stored: it costs time alone",
    "all lanes of a row, or all warps of it, write its lse": "the same number; races are looked for between blocks only",
    "lse of an empty row is not asked for": "its origin plus log 0 is -inf as well",
    "no barrier before Q where it stays in shared memory": "it is read after the first barrier of the loop",
    "blocks past the end of their sequence go on": "they load zeros and store nothing: it costs time alone",
    "a sequence has more queries than the longest": "its rows are its own, and undefined: what the array holds is wrong",
    "a part of weight 0 is multiplied all the same": "shows where it is NaN or infinite and its lse -inf, which no kernel makes",
    "ex2.approx is less exact than on the emulator": "the emulator rounds it correctly; the GPU run of the tests sees it",
    "one of two waits for the kernel before, on Hopper, is missing": "the other one orders it, over the block's barrier",
    "wgmma_fence is missing": "the emulator reorders nothing there; ptxas and the GPU runs of the tests see it",
    "two lanes of a warp race for its part of O on its way out": "they are in step on the emulator; on a GPU mostly, too",
    "K of a tile that others need is not waited for": "the turns order it: the others have given back the stage by then",
    "V of a tile that others need is not waited for": "shows where one warpgroup is two tiles behind another: in no order tried",
    "the middle row block of a causal head is made twice": "the same bits, by the same block: it costs time alone",
    "all warpgroups finish the same copy of their rows": "the same bits: two schedulers of an SM have all the work",
    "the missing volatile or memory clobber of an asm": "nvcc is free to move it and may not: the PTX is then right",
}
