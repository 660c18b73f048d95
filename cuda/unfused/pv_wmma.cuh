// O = P @ V
//
// A block of 16 warps makes 64 rows of O, all columns. It walks the keys from the first to the last and adds up in
// fp32 registers, in that order and alone: no atomics, the same bits on every run. P_smem and V_smem have two stages:
// while one is multiplied, the next is in flight.
#pragma once
#include <mma.h>

#include "abi/kernel_info.h"
#include "abi/unfused_params.h"
#include "attention/matrix.cuh"

namespace flashcore {

template <typename Element, int MAX_HEAD_DIM>
struct PvWmma {
    using T = Element;
    using Params = UnfusedParams;
    static constexpr int HEAD_DIM = MAX_HEAD_DIM, BLOCK_Q = 64, BLOCK_KV = 64, kThreads = 512;
    static constexpr int kBlocksAnSm = HEAD_DIM <= 64 ? 2 : 1;  // that the compiler leaves registers for
    static constexpr int kPieces = HEAD_DIM / 64;               // 16 x 16 pieces of O a warp

    struct Stage {
        Tile<T, BLOCK_Q, BLOCK_KV> P;
        Tile<T, BLOCK_KV, HEAD_DIM> V;
    };
    union Shared {
        Stage stages[2];
        float O[BLOCK_Q][HEAD_DIM + 8];  // after the last tile; padded as S in qk_wmma
    };

    static constexpr KernelInfo info(uint64_t abi_hash) {
        return {abi_hash, kThreads, sizeof(Shared), BLOCK_Q, HEAD_DIM, 1, sizeof(Params)};
    }

    __device__ static void run(const Params& p) {
        namespace wmma = nvcuda::wmma;
        Shared& smem = ptx::dynamic_shared_memory<Shared>();
        const int row_tiles = (p.seqlen_q + BLOCK_Q - 1) / BLOCK_Q,
                  tiles = (p.seqlen_k + BLOCK_KV - 1) / BLOCK_KV;
        int index = blockIdx.x;  // ((batch, head), row tile), the last the fastest
        const int first_row = index % row_tiles * BLOCK_Q;
        const int head = (index /= row_tiles) % p.num_heads, batch = index / p.num_heads;

        const Matrix<T> P(p.p, batch, head), V(p.v, batch, head / (p.num_heads / p.num_heads_kv)),
            O(p.o, batch, head);
        const int warp_row = threadIdx.x / 32 / 4 * 16, warp_col = threadIdx.x / 32 % 4 * 16 * kPieces;

        const auto load = [&](int tile) {
            Stage& stage = smem.stages[tile % 2];
            load_tile<kThreads>(stage.P, P, first_row, tile * BLOCK_KV, p.seqlen_q, p.seqlen_k);
            load_tile<kThreads>(stage.V, V, tile * BLOCK_KV, 0, p.seqlen_k, p.head_dim);
        };

        wmma::fragment<wmma::accumulator, 16, 16, 16, float> O_frag[kPieces];
#pragma unroll
        for (int n = 0; n < kPieces; ++n) wmma::fill_fragment(O_frag[n], 0.f);

        load(0);
        ptx::cp_async_commit();
        for (int tile = 0; tile < tiles; ++tile) {
            if (tile + 1 < tiles) load(tile + 1);
            ptx::cp_async_commit();
            ptx::cp_async_wait<1>();
            __syncthreads();  // P_smem and V_smem of this tile are complete

            const Stage& stage = smem.stages[tile % 2];
#pragma unroll
            for (int k = 0; k < BLOCK_KV; k += 16) {
                wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> P_frag;
                wmma::load_matrix_sync(P_frag, &stage.P.at[warp_row][k], stage.P.kPitch);
#pragma unroll
                for (int n = 0; n < kPieces; ++n) {
                    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> V_frag;
                    wmma::load_matrix_sync(V_frag, &stage.V.at[k][warp_col + 16 * n], stage.V.kPitch);
                    wmma::mma_sync(O_frag[n], P_frag, V_frag, O_frag[n]);
                }
            }
            __syncthreads();  // every warp has read this stage: the next cp.async, or O_smem, may overwrite it
        }

#pragma unroll
        for (int n = 0; n < kPieces; ++n)
            wmma::store_matrix_sync(&smem.O[warp_row][warp_col + 16 * n], O_frag[n], HEAD_DIM + 8,
                                    wmma::mem_row_major);
        __syncthreads();  // O_smem is complete
        if (O.aligned)
            store_tile<kThreads, 4, T, BLOCK_Q, HEAD_DIM>(O, smem.O, first_row, 0, p.seqlen_q, p.head_dim);
        else
            store_tile<kThreads, 1, T, BLOCK_Q, HEAD_DIM>(O, smem.O, first_row, 0, p.seqlen_q, p.head_dim);
    }
};

}  // namespace flashcore
