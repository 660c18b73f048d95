// Warps that worked on the same rows and different keys add up their parts, in a fixed order.
#pragma once
#include "attention/softmax.cuh"
#include "ptx/shared_memory.cuh"

namespace flashcore {

// ROW_WARPS x KEY_WARPS warps; each ends with the sum of its share of O's columns, and with m and l of whole rows.
template <int M_TILES, int HEAD_DIM, int ROW_WARPS, int KEY_WARPS>
struct Combine {
    static constexpr int kColTiles = HEAD_DIM / 8, kOwnTiles = kColTiles / KEY_WARPS;
    static_assert(kColTiles % KEY_WARPS == 0);

    struct Shared {
        float2 state[KEY_WARPS][ROW_WARPS][M_TILES * 16];  // (m, l)
        float4 O[KEY_WARPS][ROW_WARPS][M_TILES][kColTiles][32];
    };
    static constexpr int kBytes = KEY_WARPS > 1 ? sizeof(Shared) : 0;

    __device__ static int first_column(int key_warp) { return key_warp * kOwnTiles * 8; }

    __device__ __forceinline__ static void run(float (&O)[M_TILES][kColTiles][4],
                                               OnlineSoftmax<M_TILES>& softmax, int row_warp, int key_warp) {
        if constexpr (KEY_WARPS > 1) {
            Shared& smem = ptx::dynamic_shared_memory<Shared>();
            const int lane = threadIdx.x % 32;
            __syncthreads();  // every warp has read K_smem and V_smem, which smem overwrites
#pragma unroll
            for (int t = 0; t < M_TILES; ++t)
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    if (lane % 4 == 0)
                        smem.state[key_warp][row_warp][16 * t + 8 * h + lane / 4] =
                            make_float2(softmax.m[t][h], softmax.l[t][h]);
            __syncthreads();  // smem.state is complete
#pragma unroll
            for (int t = 0; t < M_TILES; ++t)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float2 part[KEY_WARPS];
                    float m = OnlineSoftmax<M_TILES>::kNoOrigin, l = 0.f;
#pragma unroll
                    for (int w = 0; w < KEY_WARPS; ++w) {
                        part[w] = smem.state[w][row_warp][16 * t + 8 * h + lane / 4];
                        m = fmaxf(m, part[w].x);
                    }
#pragma unroll
                    for (int w = 0; w < KEY_WARPS; ++w) l += part[w].y * ptx::exp2_approx(part[w].x - m);
                    const float factor = ptx::exp2_approx(softmax.m[t][h] - m);
                    softmax.m[t][h] = m;
                    softmax.l[t][h] = l;
#pragma unroll
                    for (int d = 0; d < kColTiles; ++d) {
                        O[t][d][2 * h] *= factor;
                        O[t][d][2 * h + 1] *= factor;
                    }
                }
#pragma unroll
            for (int t = 0; t < M_TILES; ++t)
#pragma unroll
                for (int d = 0; d < kColTiles; ++d)
                    smem.O[key_warp][row_warp][t][d][lane] =
                        make_float4(O[t][d][0], O[t][d][1], O[t][d][2], O[t][d][3]);
            __syncthreads();  // smem.O is complete
#pragma unroll
            for (int t = 0; t < M_TILES; ++t)
#pragma unroll
                for (int i = 0; i < kOwnTiles; ++i) {
                    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
                    for (int w = 0; w < KEY_WARPS; ++w) {
                        const float4 part = smem.O[w][row_warp][t][key_warp * kOwnTiles + i][lane];
                        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
                    }
                    O[t][i][0] = sum.x, O[t][i][1] = sum.y, O[t][i][2] = sum.z, O[t][i][3] = sum.w;
                }
        }
    }
};

}  // namespace flashcore
