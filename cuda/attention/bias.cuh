// A bias of the scores, float16, bfloat16 or float32, from global memory straight to where a warp has its scores.
#pragma once
#include "abi/score_terms.h"
#include "attention/matrix.cuh"
#include "attention/sequence.cuh"

namespace flashcore {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// S += log2(e) * bias, for rows from `first_row` and keys from `first_key` on. Rows and keys past the end take what the last
// one has, so that nothing else is read. PAIRS: all keys exist, and two neighbours come with one load. A bias beyond 2.3e38
// overflows in base 2: below zero it hides the key as -inf does.
template <bool PAIRS, typename B, int M_TILES, int N_TILES>
__device__ __forceinline__ void add_bias(float (&S)[M_TILES][N_TILES][4], const Matrix<B>& bias,
                                         int col_stride, const Sequence& rows, int first_row, int first_key) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < M_TILES; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const B* const row = bias.at(min(first_row + 16 * t + 8 * h + lane / 4, rows.seqlen_q - 1), 0);
#pragma unroll
            for (int n = 0; n < N_TILES; ++n) {
                const int key = first_key + 8 * n + lane % 4 * 2;
                struct alignas(2 * sizeof(B)) Pair {
                    B first, second;
                } x;
                if (PAIRS) {
                    x = *reinterpret_cast<const Pair*>(row + key);
                } else {
                    x = {row[int64_t(min(key, rows.seqlen_k - 1)) * col_stride],
                         row[int64_t(min(key + 1, rows.seqlen_k - 1)) * col_stride]};
                }
                S[t][n][2 * h] = fmaf(to_float(x.first), kLog2E, S[t][n][2 * h]);
                S[t][n][2 * h + 1] = fmaf(to_float(x.second), kLog2E, S[t][n][2 * h + 1]);
            }
        }
}

template <typename B, int M_TILES, int N_TILES>
__device__ __forceinline__ void add_bias(float (&S)[M_TILES][N_TILES][4], const ScoreTerms& terms, int batch,
                                         int head, const Sequence& rows, int first_row, int first_key) {
    Matrix<B> bias(terms.bias, batch, head);
    bias.data += int64_t(rows.first_k) * terms.bias_col_stride;
    const bool inside = first_key + 8 * N_TILES <= rows.seqlen_k;
    if (inside && terms.bias_pairs)
        add_bias<true>(S, bias, 1, rows, first_row, first_key);
    else
        add_bias<false>(S, bias, terms.bias_col_stride, rows, first_row, first_key);
}

}  // namespace flashcore
