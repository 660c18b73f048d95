// Logits in base 2 from a warp's products Q K^T, in place:
//   log2(e) * (softcap(softmax_scale * q k) + bias - slope * |i + seqlen_k - seqlen_q - j|)
#pragma once
#include "attention/bias.cuh"
#include "attention/tanh.cuh"

namespace flashcore {

// Of one batch and head.
struct Scores {
    const ScoreTerms& terms;
    const Sequence& rows;
    const float scale_log2;
    const int batch, head;

    // For the rows from `first_row` and the keys from `first_key` on.
    template <int M_TILES, int N_TILES>
    __device__ __forceinline__ void finish(float (&S)[M_TILES][N_TILES][4], int first_row,
                                           int first_key) const {
        if (terms.softcap_log2 != 0.f)
            for_each(S, [&](float& s, int, int) {
                s = terms.softcap_log2 * tanh_exact(s * terms.softcap_inverse);
            });
        else
            for_each(S, [&](float& s, int, int) { s *= scale_log2; });
        if (terms.alibi_slopes != nullptr) subtract_distance(S, first_row, first_key);
        if (terms.bias_type == kBiasF16) add_bias<__half>(S, terms, batch, head, rows, first_row, first_key);
        if (terms.bias_type == kBiasBf16)
            add_bias<__nv_bfloat16>(S, terms, batch, head, rows, first_row, first_key);
        if (terms.bias_type == kBiasF32) add_bias<float>(S, terms, batch, head, rows, first_row, first_key);
    }

    // ALiBi. The lane's first distance as a float, from which the others differ by small whole numbers.
    template <int M_TILES, int N_TILES>
    __device__ __forceinline__ void subtract_distance(float (&S)[M_TILES][N_TILES][4], int first_row,
                                                      int first_key) const {
        const float slope = terms.alibi_slopes[batch * terms.alibi_batch_stride + head] * kLog2E;
        const int lane = threadIdx.x % 32;
        const float distance =
            float(rows.seqlen_k - rows.seqlen_q + first_row + lane / 4 - first_key - lane % 4 * 2);
        for_each(
            S, [&](float& s, int row, int key) { s = fmaf(-slope, fabsf(distance + float(row - key)), s); });
    }

    // f(S, row, key), counted from the lane's first
    template <int M_TILES, int N_TILES, typename F>
    __device__ __forceinline__ static void for_each(float (&S)[M_TILES][N_TILES][4], const F& f) {
#pragma unroll
        for (int t = 0; t < M_TILES; ++t)
#pragma unroll
            for (int n = 0; n < N_TILES; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) f(S[t][n][e], 16 * t + e / 2 * 8, 8 * n + e % 2);
    }
};

}  // namespace flashcore
