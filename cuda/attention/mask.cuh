// Scores that a row must not see become -inf.
#pragma once
#include "attention/block_range.cuh"

namespace flashcore {

// S of a warp from its tile of rows FROM on. Its tiles of 16 rows begin at first_row, first_row + rows_apart ...; its keys
// begin at `first_key`.
template <int FROM = 0, int M_TILES, int N_TILES, Band BAND>
__device__ __forceinline__ void mask(float (&S)[M_TILES][N_TILES][4], const KeyLimit<BAND>& limit,
                                     int first_row, int rows_apart, int first_key) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = FROM; t < M_TILES; ++t)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = first_row + rows_apart * t + 8 * h + lane / 4,
                      first_col = first_key + lane % 4 * 2;
            const int begin = limit.begin(row) - first_col, end = limit.end(row) - first_col;
#pragma unroll
            for (int n = 0; n < N_TILES; ++n)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    if (8 * n + e >= end || (BAND == Band::kWindow && 8 * n + e < begin))
                        S[t][n][2 * h + e] = -INFINITY;
        }
}

}  // namespace flashcore
