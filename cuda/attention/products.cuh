// The two products of attention on a warp's fragments: M_TILES tiles of 16 query rows against 16 keys at a time, so that
// every fragment of K or V that comes from shared memory feeds 2 * M_TILES mma. FROM: the first of these tiles that is made.
#pragma once
#include "attention/swizzle.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace flashcore {

template <int M_TILES, int COLS>
using Accumulators = float[M_TILES][COLS / 8][4];  // [16 * M_TILES, COLS], see ptx/mma.cuh

template <int M_TILES, int KEYS>
using Probabilities = uint32_t[KEYS / 16][M_TILES][4];  // [16 * M_TILES, KEYS] as left operands

// Lane q of four gets the q-th argument of all four, in their order: of four neighbouring tiles of accumulators, packed, the
// eight columns of one.
__device__ inline uint4 transpose_quad(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
    const uint32_t ab = __shfl_xor_sync(0xffffffffu, odd ? a : b, 1),
                   cd = __shfl_xor_sync(0xffffffffu, odd ? c : d, 1);
    (odd ? a : b) = ab, (odd ? c : d) = cd;
    const uint32_t ac = __shfl_xor_sync(0xffffffffu, high ? a : c, 2),
                   bd = __shfl_xor_sync(0xffffffffu, high ? b : d, 2);
    (high ? a : c) = ac, (high ? b : d) = bd;
    return make_uint4(a, b, c, d);
}

// Q of a warp: in registers, or read again from shared memory for every use.
template <int M_TILES, int HEAD_DIM, bool IN_REGISTERS>
struct QueryFragments {
    static constexpr int kSteps = HEAD_DIM / 16;
    FragmentAddress<HEAD_DIM> address;
    uint32_t held[IN_REGISTERS ? kSteps : 1][M_TILES][4];

    __device__ QueryFragments(uint32_t tile, int lane) : address(tile, lane % 16, lane / 16) {}

    // After Q_smem is complete.
    __device__ void begin() {
        if constexpr (IN_REGISTERS) {
#pragma unroll
            for (int k = 0; k < kSteps; ++k)
#pragma unroll
                for (int t = 0; t < M_TILES; ++t) ptx::ldmatrix_x4(held[k][t], address.at(t, k));
        }
    }
    template <int FROM>
    __device__ const uint32_t (&step(int k)) [M_TILES][4] {
        if constexpr (IN_REGISTERS) {
            return held[k];
        } else {
#pragma unroll
            for (int t = FROM; t < M_TILES; ++t) ptx::ldmatrix_x4(held[0][t], address.at(t, k));
            return held[0];
        }
    }
};

// S[:, FIRST ... FIRST + COUNT) = Q @ K^T for the keys FIRST ... of the tile at `K_offset`.
template <typename T, int FIRST, int COUNT, int FROM = 0, typename Queries, int HEAD_DIM, int M_TILES,
          int N_TILES>
__device__ __forceinline__ void multiply_qk(float (&S)[M_TILES][N_TILES][4], Queries& Q,
                                            const FragmentAddress<HEAD_DIM>& K, uint32_t K_offset) {
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; ++k) {
        const uint32_t (&Q_frag)[M_TILES][4] = Q.template step<FROM>(k);
#pragma unroll
        for (int j = FIRST / 16; j < (FIRST + COUNT) / 16; ++j) {
            uint32_t K_frag[4];
            ptx::ldmatrix_x4(K_frag, K.at(j, k, K_offset));
#pragma unroll
            for (int t = FROM; t < M_TILES; ++t)
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    if (k == 0)
                        ptx::mma_m16n8k16_from_zero<T>(S[t][2 * j + n], Q_frag[t], K_frag[2 * n],
                                                       K_frag[2 * n + 1]);
                    else
                        ptx::mma_m16n8k16<T>(S[t][2 * j + n], Q_frag[t], K_frag[2 * n], K_frag[2 * n + 1]);
                }
        }
    }
}

// O += P[:, FIRST ... FIRST + COUNT) @ V for the keys FIRST ... of the tile at `V_offset`.
template <typename T, int FIRST, int COUNT, int FROM = 0, int HEAD_DIM, int M_TILES, int N_TILES, int KEYS16>
__device__ __forceinline__ void multiply_pv(float (&O)[M_TILES][N_TILES][4],
                                            const uint32_t (&P)[KEYS16][M_TILES][4],
                                            const FragmentAddress<HEAD_DIM>& V, uint32_t V_offset) {
#pragma unroll
    for (int j = FIRST / 16; j < (FIRST + COUNT) / 16; ++j)
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 16; ++d) {
            uint32_t V_frag[4];
            ptx::ldmatrix_x4_trans(V_frag, V.at(j, d, V_offset));
#pragma unroll
            for (int t = FROM; t < M_TILES; ++t)
#pragma unroll
                for (int n = 0; n < 2; ++n)
                    ptx::mma_m16n8k16<T>(O[t][2 * d + n], P[j][t], V_frag[2 * n], V_frag[2 * n + 1]);
        }
}

}  // namespace flashcore
