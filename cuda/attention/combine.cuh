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

    using Parts = float4[KEY_WARPS][ROW_WARPS][M_TILES][kColTiles][32];
    using State = float2[KEY_WARPS][ROW_WARPS][M_TILES * 16];  // (m, l)
    static constexpr int kPartBytes = sizeof(Parts), kStateBytes = sizeof(State);

    __device__ static int first_column(int key_warp) { return key_warp * kOwnTiles * 8; }

    // Nobody reads the shared memory at `parts_at` and `state_at` any more.
    __device__ __forceinline__ static void run(float (&O)[M_TILES][kColTiles][4],
                                               OnlineSoftmax<M_TILES>& softmax, int row_warp, int key_warp,
                                               int parts_at, int state_at) {
        if constexpr (KEY_WARPS > 1) {
            unsigned char* const smem = &ptx::dynamic_shared_memory<unsigned char>();
            Parts& parts = *reinterpret_cast<Parts*>(smem + parts_at);
            State& state = *reinterpret_cast<State*>(smem + state_at);
            const int lane = threadIdx.x % 32;
#pragma unroll
            for (int t = 0; t < M_TILES; ++t) {
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    if (lane % 4 == 0)
                        state[key_warp][row_warp][16 * t + 8 * h + lane / 4] =
                            make_float2(softmax.m[t][h], softmax.l[t][h]);
#pragma unroll
                for (int d = 0; d < kColTiles; ++d)
                    parts[key_warp][row_warp][t][d][lane] =
                        make_float4(O[t][d][0], O[t][d][1], O[t][d][2], O[t][d][3]);
            }
            __syncthreads();  // parts and state are complete
#pragma unroll
            for (int t = 0; t < M_TILES; ++t) {
                float factor[KEY_WARPS][2];
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float2 part[KEY_WARPS];
                    float m = OnlineSoftmax<M_TILES>::kNoOrigin, l = 0.f;
#pragma unroll
                    for (int w = 0; w < KEY_WARPS; ++w) {
                        part[w] = state[w][row_warp][16 * t + 8 * h + lane / 4];
                        m = fmaxf(m, part[w].x);
                    }
#pragma unroll
                    for (int w = 0; w < KEY_WARPS; ++w) {
                        factor[w][h] = ptx::exp2_approx(part[w].x - m);
                        l += part[w].y * factor[w][h];
                    }
                    softmax.m[t][h] = m;
                    softmax.l[t][h] = l;
                }
#pragma unroll
                for (int i = 0; i < kOwnTiles; ++i) {
                    float sum[4] = {};
#pragma unroll
                    for (int w = 0; w < KEY_WARPS; ++w) {
                        const float4 part = parts[w][row_warp][t][key_warp * kOwnTiles + i][lane];
                        sum[0] += part.x * factor[w][0], sum[1] += part.y * factor[w][0];
                        sum[2] += part.z * factor[w][1], sum[3] += part.w * factor[w][1];
                    }
#pragma unroll
                    for (int e = 0; e < 4; ++e) O[t][i][e] = sum[e];
                }
            }
        }
    }
};

}  // namespace flashcore
