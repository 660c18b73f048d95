// O / l and lse of a warp's 16 rows to global memory.
#pragma once
#include "abi/flash_fwd_params.h"
#include "attention/matrix.cuh"
#include "attention/normalise.cuh"
#include "attention/softmax.cuh"
#include "flash_fwd/row_blocks.cuh"
#include "ptx/shared_memory.cuh"
#include "ptx/stmatrix.cuh"

namespace flashcore {

// The end of a lane's two rows, once all their keys have been seen: lse goes to global memory, `factor` is what O is multiplied
// by. `warp_row`: the first of the warp's rows, in the row block.
struct RowEnds {
    float factor[2];

    __device__ RowEnds() {}
    __device__ RowEnds(const FlashFwdParams& p, const Task& task, int warp_row, OnlineSoftmax<1>& softmax) {
        softmax.finish();
        const float sink = p.sinks == nullptr ? -INFINITY : p.sinks[task.place.head];
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const Normalised end(softmax.m[0][h], softmax.l[0][h], sink);
            factor[h] = end.factor;
            const int row = task.place.first_row + warp_row + 8 * h + lane / 4;
            if (p.lse.data != nullptr && lane % 4 == 0 && row < task.seqlen_q)
                *Matrix<float>(p.lse, task.place.batch, task.place.head, task.first_q).at(row, 0) = end.lse();
        }
    }
};

// O begins on 16 bytes, and so does every row. 64 columns at a time go
// through `staging`, 16 rows of 128 bytes of the warp's own, so that a row leaves in one piece. Its chunks of 16 bytes are
// permuted as by Swizzle (attention/swizzle.cuh): no two of eight rows in the same banks.
template <typename T, int O_TILES>
__device__ __forceinline__ void store_rows(const FlashFwdParams& p, const Task& task, int warp_row,
                                           const float (&O)[O_TILES][4], const RowEnds& ends,
                                           uint32_t staging) {
    static_assert(O_TILES % 4 == 0);
    const int lane = threadIdx.x % 32, first_row = task.place.first_row + warp_row;
    const Matrix<T> O_gmem(p.o, task.place.batch, task.place.head, task.first_q);
    const auto chunk_at = [&](int row, int chunk) { return staging + row * 128 + (chunk ^ (row % 8)) * 16; };
#pragma unroll
    for (int i = 0; i < O_TILES; i += 8) {
        constexpr int kRowsAtOnce = 4, kChunks = 8;
#pragma unroll
        for (int j = i; j < i + 8 && j < O_TILES; j += 2) {
            uint32_t pairs[4];  // rows 0 to 7 and 8 to 15 of tile j, then of the next
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const float* const o = O[j + k / 2] + k % 2 * 2;
                pairs[k] = pack<T>(o[0] * ends.factor[k % 2], o[1] * ends.factor[k % 2]);
            }
            ptx::stmatrix_x4(chunk_at(lane % 16, j - i + lane / 16), pairs);
        }
        __syncwarp();
#pragma unroll
        for (int r = 0; r < 16; r += kRowsAtOnce) {
            const int row = r + lane / kChunks, col = 8 * (i + lane % kChunks);
            const uint4 chunk = ptx::load_shared(chunk_at(row, lane % kChunks));
            if (first_row + row < task.seqlen_q && col < p.head_dim_v)
                *reinterpret_cast<uint4*>(O_gmem.at(first_row + row, col)) = chunk;
        }
        __syncwarp();  // the staging is read
    }
}

}  // namespace flashcore
