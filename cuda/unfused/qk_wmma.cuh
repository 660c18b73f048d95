// S = softmax_scale · Q @ K^T
//
// A block of 16 warps makes kTilesABlock neighbouring tiles of S, 64 x 64 each, one 16 x 16 piece a warp. Q_smem is
// loaded once; K_smem has two stages: while a tile is multiplied and written, the K of the next is in flight.
#pragma once
#include <mma.h>

#include "abi/kernel_info.h"
#include "abi/unfused_params.h"
#include "attention/matrix.cuh"

namespace flashcore {

template <typename Element, int MAX_HEAD_DIM>
struct QkWmma {
    using T = Element;
    using Params = UnfusedParams;
    static constexpr int HEAD_DIM = MAX_HEAD_DIM, BLOCK_Q = 64, BLOCK_KV = 64, kThreads = 512,
                         kTilesABlock = 4;
    static constexpr int kBlocksAnSm = HEAD_DIM <= 64 ? 2 : 1;  // that the compiler leaves registers for

    struct Shared {
        Tile<T, BLOCK_Q, HEAD_DIM> Q;
        Tile<T, BLOCK_KV, HEAD_DIM> K[2];
        // Eight columns of padding: the 8-byte stores of an accumulator (4 rows x 32 bytes a half-warp) meet no bank twice.
        float S[BLOCK_Q][BLOCK_KV + 8];
    };

    static constexpr KernelInfo info(uint64_t abi_hash) {
        return {abi_hash, kThreads, sizeof(Shared), BLOCK_Q, BLOCK_KV, kTilesABlock, sizeof(Params)};
    }

    __device__ static void run(const Params& p) {
        namespace wmma = nvcuda::wmma;
        Shared& smem = ptx::dynamic_shared_memory<Shared>();
        const int row_tiles = (p.seqlen_q + BLOCK_Q - 1) / BLOCK_Q,
                  tiles = (p.seqlen_k + BLOCK_KV - 1) / BLOCK_KV;
        const int col_groups = (tiles + kTilesABlock - 1) / kTilesABlock;
        int index = blockIdx.x;  // ((batch, head), row tile, group of column tiles), the last the fastest
        const int first_tile = index % col_groups * kTilesABlock,
                  last_tile = min(first_tile + kTilesABlock, tiles);
        const int first_row = (index /= col_groups) % row_tiles * BLOCK_Q;
        const int head = (index /= row_tiles) % p.num_heads, batch = index / p.num_heads;

        const Matrix<T> Q(p.q, batch, head), K(p.k, batch, head / (p.num_heads / p.num_heads_kv));
        const Matrix<float> S(p.s, batch, head);
        const int warp_row = threadIdx.x / 32 / 4 * 16, warp_col = threadIdx.x / 32 % 4 * 16;

        load_tile<kThreads>(smem.Q, Q, first_row, 0, p.seqlen_q, p.head_dim);
        load_tile<kThreads>(smem.K[0], K, first_tile * BLOCK_KV, 0, p.seqlen_k, p.head_dim);
        ptx::cp_async_commit();

        for (int tile = first_tile; tile < last_tile; ++tile) {
            const int stage = (tile - first_tile) % 2;
            if (tile + 1 < last_tile)
                load_tile<kThreads>(smem.K[stage ^ 1], K, (tile + 1) * BLOCK_KV, 0, p.seqlen_k, p.head_dim);
            ptx::cp_async_commit();
            ptx::cp_async_wait<1>();
            __syncthreads();  // Q_smem and K_smem[stage] are complete; every thread has written out the last S_smem

            wmma::fragment<wmma::accumulator, 16, 16, 16, float> S_frag;
            wmma::fill_fragment(S_frag, 0.f);
#pragma unroll
            for (int k = 0; k < HEAD_DIM; k += 16) {
                wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> Q_frag;
                wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major>
                    K_frag;  // K^T without a transposition
                wmma::load_matrix_sync(Q_frag, &smem.Q.at[warp_row][k], smem.Q.kPitch);
                wmma::load_matrix_sync(K_frag, &smem.K[stage].at[warp_col][k], smem.Q.kPitch);
                wmma::mma_sync(S_frag, Q_frag, K_frag, S_frag);
            }
#pragma unroll
            for (int i = 0; i < S_frag.num_elements; ++i) S_frag.x[i] *= p.softmax_scale;
            wmma::store_matrix_sync(&smem.S[warp_row][warp_col], S_frag, BLOCK_KV + 8, wmma::mem_row_major);
            __syncthreads();  // S_smem is complete; every warp has read K_smem[stage]: the next cp.async may overwrite it

            if (S.aligned)
                store_tile<kThreads, 4, float, BLOCK_Q, BLOCK_KV>(S, smem.S, first_row, tile * BLOCK_KV,
                                                                  p.seqlen_q, p.seqlen_k);
            else
                store_tile<kThreads, 1, float, BLOCK_Q, BLOCK_KV>(S, smem.S, first_row, tile * BLOCK_KV,
                                                                  p.seqlen_q, p.seqlen_k);
        }
    }
};

}  // namespace flashcore
