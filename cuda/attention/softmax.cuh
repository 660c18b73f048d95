// Online softmax in base 2 on a warp's accumulators.
//
// P = exp2(scale * S - m), l = sum of P. m is a row's origin, not its exact maximum: any origin gives the same softmax as
// long as P fits its type, so m moves (and l and O are rescaled) only when it must. Two ways to find out:
//   lazily         S is searched for its maximum; m moves if a score lies more than 2^kHeadroom above it
//   speculatively  P is computed at once; its sums tell whether it fitted. If not, the tile is done again, lazily.
// Speculation saves the search, two instructions in three elements; scores that rise with every tile would cost twice.
// So a warp whose speculation has failed once does not speculate again.
#pragma once
#include <cfloat>

#include "attention/numeric.cuh"
#include "ptx/exp2.cuh"

namespace flashcore {

// Over the four lanes that share a row of the accumulators.
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <int M_TILES>
struct OnlineSoftmax {
    static constexpr float kHeadroom = 8.f;
    static constexpr float kLargestSum =
        4096.f;  // of P in a lane: far below the largest float16, above any P of lazy rows
    // Origin of a row that has seen no key: finite, so that exp2(-inf - m) = 0, and below every score.
    static constexpr float kNoOrigin = -FLT_MAX;

    using Rows = float[M_TILES][2];  // element [t][h] is that of row 16 t + 8 h + lane / 4
    Rows m, l;                       // l: of this lane's columns until finish()
    bool may_speculate = false, has_failed = false;

    __device__ OnlineSoftmax() {
#pragma unroll
        for (int t = 0; t < M_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                m[t][h] = kNoOrigin;
                l[t][h] = 0.f;
            }
    }

    // P = exp2(scale * S - m) for the keys FIRST ... FIRST + COUNT of a tile, and its sums added to `sum`.
    template <typename T, int FIRST, int COUNT, int N_TILES, int KEYS16>
    __device__ __forceinline__ void exponentials(const float (&S)[M_TILES][N_TILES][4],
                                                 uint32_t (&P)[KEYS16][M_TILES][4], float scale,
                                                 Rows& sum) const {
#pragma unroll
        for (int j = FIRST / 16; j < (FIRST + COUNT) / 16; ++j)
#pragma unroll
            for (int t = 0; t < M_TILES; ++t)
#pragma unroll
                for (int n = 0; n < 2; ++n)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const float (&s)[4] = S[t][2 * j + n];
                        const float first = ptx::exp2_approx(fmaf(s[2 * h], scale, -m[t][h]));
                        const float second = ptx::exp2_approx(fmaf(s[2 * h + 1], scale, -m[t][h]));
                        sum[t][h] += first + second;
                        P[j][t][2 * n + h] = pack<T>(first, second);
                    }
    }

    // Whether all P that these sums are of were small enough; if so, they count. The same answer for the whole warp.
    __device__ bool accept(const Rows& sum) {
        bool fits = true;  // false for NaN, too
#pragma unroll
        for (int t = 0; t < M_TILES; ++t) fits &= sum[t][0] < kLargestSum && sum[t][1] < kLargestSum;
        fits = __all_sync(0xffffffffu, fits);
        if (fits) {
#pragma unroll
            for (int t = 0; t < M_TILES; ++t)
#pragma unroll
                for (int h = 0; h < 2; ++h) l[t][h] += sum[t][h];
        } else {
            has_failed = true;
            may_speculate = false;
        }
        return fits;
    }

    // Moves the origins, if any of them must, to the rows' largest score so far.
    template <int N_TILES, int O_TILES>
    __device__ __forceinline__ void settle(const float (&S)[M_TILES][N_TILES][4],
                                           float (&O)[M_TILES][O_TILES][4], float scale) {
        Rows peak;
        bool grown = false;
#pragma unroll
        for (int t = 0; t < M_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                peak[t][h] = fmaxf(S[t][0][2 * h], S[t][0][2 * h + 1]);
#pragma unroll
                for (int n = 1; n < N_TILES; ++n)
                    peak[t][h] = fmaxf(peak[t][h], fmaxf(S[t][n][2 * h], S[t][n][2 * h + 1]));
                grown |= fmaf(peak[t][h], scale, -kHeadroom) > m[t][h];
            }
        if (!__any_sync(0xffffffffu, grown)) return;

        bool seen = true;
#pragma unroll
        for (int t = 0; t < M_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float next = fmaxf(m[t][h], quad_max(peak[t][h]) * scale);
                const float rescale = ptx::exp2_approx(m[t][h] - next);
                m[t][h] = next;
                l[t][h] *= rescale;
#pragma unroll
                for (int d = 0; d < O_TILES; ++d) {
                    O[t][d][2 * h] *= rescale;
                    O[t][d][2 * h + 1] *= rescale;
                }
                seen &= next > kNoOrigin;
            }
        may_speculate = !has_failed && __all_sync(0xffffffffu, seen);
    }

    // Sums up the lanes of a row.
    __device__ void finish() {
#pragma unroll
        for (int t = 0; t < M_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) l[t][h] = quad_sum(l[t][h]);
    }
};

}  // namespace flashcore
