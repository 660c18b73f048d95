// Online softmax in base 2 on a warp's accumulators.
//
// P = exp2(scale * S - m), l = sum of P. m is a row's origin: any gives the same softmax as long as P fits its type.
//   searching      S is searched for its maximum, m becomes the largest score so far, l and O are rescaled
//   speculatively  m stays and P is computed at once; its sums tell whether it fitted. If not, the tile is searched.
// Speculation saves the search and the rescaling; scores that rise with every tile would cost twice. So a warp whose
// speculation has failed once does not speculate again. A search always rescales in settle(): asking whether a row needs it (a
// vote and a branch, between the products and the exponentials) costs mma.sync more than it saves; raise() asks.
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
    static constexpr float kHeadroom = 8.f;       // of raise(): P stays below 2^kHeadroom
    static constexpr float kLargestSum = 4096.f;  // of P in a lane: far below the largest float16
    // Origin of a row that has seen no key: finite, so that exp2(-inf - m) = 0, and below every score.
    static constexpr float kNoOrigin = -FLT_MAX;

    using Rows = float[M_TILES][2];  // element [t][h] is that of row 16 t + 8 h + lane / 4
    Rows m, l;                       // l: of this lane's columns until finish()
    enum Speculation { kNotYet, kGoing, kFailed } speculation = kNotYet;

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
    template <typename T, int FIRST, int COUNT, int FROM = 0, int N_TILES, int KEYS16>
    __device__ __forceinline__ void exponentials(const float (&S)[M_TILES][N_TILES][4],
                                                 uint32_t (&P)[KEYS16][M_TILES][4], float scale,
                                                 Rows& sum) const {
#pragma unroll
        for (int j = FIRST / 16; j < (FIRST + COUNT) / 16; ++j)
#pragma unroll
            for (int t = FROM; t < M_TILES; ++t)
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
        if (!__all_sync(0xffffffffu, fits)) return false;
#pragma unroll
        for (int t = 0; t < M_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) l[t][h] += sum[t][h];
        return true;
    }

    // peak = largest S of the keys FIRST ... FIRST + COUNT, in this lane; with FIRST > 0, of those before them, too.
    template <int FIRST, int COUNT, int FROM = 0, int N_TILES>
    __device__ __forceinline__ static void search(const float (&S)[M_TILES][N_TILES][4], Rows& peak) {
#pragma unroll
        for (int t = FROM; t < M_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int n = FIRST / 8; n < (FIRST + COUNT) / 8; ++n) {
                    const float larger = fmaxf(S[t][n][2 * h], S[t][n][2 * h + 1]);
                    peak[t][h] = n == 0 ? larger : fmaxf(peak[t][h], larger);
                }
    }

    // The origin of row [t][h] becomes its largest score so far. What O is to be multiplied by, as l is.
    __device__ __forceinline__ float move_origin(int t, int h, const Rows& peak, float scale) {
        const float next = fmaxf(m[t][h], quad_max(peak[t][h]) * scale);
        const float rescale = ptx::exp2_approx(m[t][h] - next);
        m[t][h] = next;
        l[t][h] *= rescale;
        return rescale;
    }

    // Moves the origins if any row of the warp must; O is left to the caller. False if nothing moved.
    __device__ __forceinline__ bool raise(const Rows& peak, float scale, Rows& rescale) {
        bool grown = false;
#pragma unroll
        for (int t = 0; t < M_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) grown |= fmaf(peak[t][h], scale, -kHeadroom) > m[t][h];
        if (!__any_sync(0xffffffffu, grown)) return false;
#pragma unroll
        for (int t = 0; t < M_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) rescale[t][h] = move_origin(t, h, peak, scale);
        return true;
    }

    // Moves the origins to the rows' largest score so far, and rescales O.
    template <int FROM = 0, int O_TILES>
    __device__ __forceinline__ void settle(const Rows& peak, float (&O)[M_TILES][O_TILES][4], float scale) {
#pragma unroll
        for (int t = FROM; t < M_TILES; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float rescale = move_origin(t, h, peak, scale);
#pragma unroll
                for (int d = 0; d < O_TILES; ++d) {
                    O[t][d][2 * h] *= rescale;
                    O[t][d][2 * h + 1] *= rescale;
                }
            }
    }

    // After a search: speculation begins when every row of the warp has an origin, and is over once a tile that it was `tried`
    // on was searched after all. Set here, it costs a speculative tile nothing.
    __device__ __forceinline__ void consider_speculation(bool tried) {
        if (speculation != kNotYet) {
            if (tried) speculation = kFailed;
            return;
        }
        bool seen = true;
#pragma unroll
        for (int t = 0; t < M_TILES; ++t) seen &= m[t][0] > kNoOrigin && m[t][1] > kNoOrigin;
        if (__all_sync(0xffffffffu, seen)) speculation = kGoing;
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
