// A schedule for large HEAD_DIM: two warps share 32 rows of Q.
//
// There a warp has registers for O of 16 rows only, so that every fragment of K and V feeds 2 mma and shared memory
// binds. A pair of warps splits S by rows and O by columns instead:
//     S = Q @ K^T    each warp its 16 rows, Q in registers                                    [16, KEYS]
//     P              of both warps, through shared memory                                     [32, KEYS]
//     O += P @ V     each warp half of the columns: a fragment of V feeds 4 mma               [32, HEAD_DIM / 2]
// The origin of a row belongs to the warp that makes its S. When it moves, the factor for O travels with P.
//
// Tiles are visited from the last to the first; between two barriers S of tile - 1 and O of `tile` are made. K_smem, V_smem
// and P_smem have two stages.
#pragma once
#include "abi/flash_fwd_params.h"
#include "attention/block_range.cuh"
#include "attention/mask.cuh"
#include "attention/normalise.cuh"
#include "attention/products.cuh"
#include "attention/softmax.cuh"
#include "flash_fwd/place.cuh"

namespace flashcore {

// Q of 16 rows in registers, straight from global memory.
template <typename T, int HEAD_DIM>
struct QueryRegisters {
    uint4 chunk[HEAD_DIM / 32][2];  // [i][h]: columns 32 i + 8 (lane % 4) ... of row 8 h + lane / 4
    uint32_t held[HEAD_DIM / 16][1][4];

    // Begins to read; rows from `rows` on repeat the last one, as nobody stores what comes of them.
    __device__ QueryRegisters(const Matrix<T>& Q, int first_row, int rows) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const T* row = Q.at(min(first_row + 8 * h + lane / 4, rows - 1), lane % 4 * 8);
#pragma unroll
            for (int i = 0; i < HEAD_DIM / 32; ++i)
                chunk[i][h] = *reinterpret_cast<const uint4*>(row + 32 * i);
        }
    }

    // Left operands of mma from what was read.
    __device__ __forceinline__ void arrange() {
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 32; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint4& x = chunk[i][h];
                const uint4 y = transpose_quad(x.x, x.y, x.z, x.w);
                held[2 * i][0][h] = y.x, held[2 * i][0][2 + h] = y.y;
                held[2 * i + 1][0][h] = y.z, held[2 * i + 1][0][2 + h] = y.w;
            }
    }

    template <int FROM>
    __device__ const uint32_t (&step(int k) const)[1][4] {
        return held[k];
    }
};

template <typename T, int HEAD_DIM, int WARPS, int KEYS, Band BAND>
struct PairedWarps {
    static_assert(HEAD_DIM % 64 == 0);  // O leaves four of a warp's HEAD_DIM / 16 tiles at a time
    static constexpr int kThreads = 32 * WARPS, kPairs = WARPS / 2, kColumnTiles = HEAD_DIM / 16;
    static constexpr int kTileBytes = KEYS * HEAD_DIM * 2;
    using Tiles = BlockRange<KEYS>;
    using Loader = TileLoader<T, KEYS, HEAD_DIM, kThreads>;

    struct Shared {
        unsigned char K[2][kTileBytes], V[2][kTileBytes];
        uint4 P[2][kPairs][2][KEYS / 16][32];  // [stage][pair][half][16 keys][lane]: left operands of mma
        float row[2][kPairs][2][16];           // of every row, where `moved`: what O is to be multiplied by
        int moved[2][kPairs][2];
    };
    static constexpr int kSharedBytes = sizeof(Shared);

    Shared& smem;
    const FlashFwdParams& p;
    const Sequence rows;
    const KeyLimit<BAND> limit;
    const int last;              // tile of the block
    const int lane, pair, half;  // half: 16 of the pair's 32 rows of S, and 16 of every 32 columns of O
    const int pair_row, warp_row;
    const FragmentAddress<HEAD_DIM> K, V;
    float S[1][KEYS / 8][4], O[2][kColumnTiles][4];
    OnlineSoftmax<1> softmax;

    __device__ PairedWarps(const FlashFwdParams& p, int /* batch */, int /* head */, const Sequence& rows,
                           const KeyLimit<BAND>& limit, const Tiles& tiles, int first_row)
        : smem(ptx::dynamic_shared_memory<Shared>()),
          p(p),
          rows(rows),
          limit(limit),
          last(tiles.end - 1),
          lane(threadIdx.x % 32),
          pair(threadIdx.x / 64),
          half(threadIdx.x / 32 % 2),
          pair_row(first_row + 32 * pair),
          warp_row(pair_row + 16 * half),
          K(ptx::shared_address(smem.K), lane % 8 + lane / 16 * 8, lane / 8 % 2),
          V(ptx::shared_address(smem.V), lane % 16, lane / 16 + 2 * half) {
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int d = 0; d < kColumnTiles; ++d)
#pragma unroll
                for (int e = 0; e < 4; ++e) O[t][d][e] = 0.f;
    }

    __device__ static uint32_t stage(int tile) { return (tile & 1) * kTileBytes; }

    // The same for all lanes, and the compiler knows it: then addresses cost no registers of theirs.
    __device__ static int uniform(int x) { return BAND == Band::kAll ? x : __shfl_sync(0xffffffffu, x, 0); }

    __device__ __forceinline__ static void await() {
        ptx::cp_async_wait<0>();
        __syncthreads();  // P and V of the tile and K of the next are complete; of the tile before, all have been read
    }

    // V of the next tile and K of the one after it.
    __device__ __forceinline__ static void copy(int tile, Loader& K_loader, Loader& V_loader) {
        V_loader.load((tile - 1) * KEYS, stage(tile - 1));
        if (tile > 1) K_loader.load((tile - 2) * KEYS, stage(tile));
        ptx::cp_async_commit();
    }

    // A number for each of this warp's rows, to both warps of the pair.
    __device__ __forceinline__ void publish(int stage, const float (&x)[2]) const {
        if (lane % 4 == 0) {
#pragma unroll
            for (int h = 0; h < 2; ++h) smem.row[stage][pair][half][8 * h + lane / 4] = x[h];
        }
    }

    // P of a tile from its S, and what becomes of the origins.
    __device__ __forceinline__ void probabilities(int tile, bool masked) {
        if (masked) mask(S, limit, warp_row, 16, tile * KEYS);
        float peak[1][2], factors[1][2];
        softmax.template search<0, KEYS>(S, peak);
        const bool moved = softmax.raise(peak, p.scale_log2, factors);
        Probabilities<1, KEYS> P;
        softmax.template exponentials<T, 0, KEYS>(S, P, p.scale_log2, softmax.l);
#pragma unroll
        for (int j = 0; j < KEYS / 16; ++j)
            smem.P[tile & 1][pair][half][j][lane] =
                make_uint4(P[j][0][0], P[j][0][1], P[j][0][2], P[j][0][3]);
        if (lane == 0) smem.moved[tile & 1][pair][half] = moved;
        if (moved) publish(tile & 1, factors[0]);
    }

    // O += P @ V, after O was multiplied by `factor` if RESCALE: column by column, beside the mma of others
    template <bool RESCALE>
    __device__ __forceinline__ void values(int tile, const float (&factor)[2][2]) {
        constexpr int kSteps = HEAD_DIM / 32, kAll = KEYS / 16 * kSteps;
        uint32_t P[2][4], V_frag[2][4];
        const auto load_V = [&](int i) {
            ptx::ldmatrix_x4_trans(V_frag[i % 2], V.at(i / kSteps, 2 * (i % kSteps), stage(tile)));
        };
        load_V(0);
#pragma unroll
        for (int i = 0; i < kAll; ++i) {
            const int d = i % kSteps;
            if (d == 0) {
#pragma unroll
                for (int t = 0; t < 2; ++t) {
                    const uint4 x = smem.P[tile & 1][pair][t][i / kSteps][lane];
                    P[t][0] = x.x, P[t][1] = x.y, P[t][2] = x.z, P[t][3] = x.w;
                }
            }
            if (i + 1 < kAll) load_V(i + 1);
#pragma unroll
            for (int t = 0; t < 2; ++t)
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    float (&o)[4] = O[t][2 * d + n];
                    if (RESCALE && i < kSteps) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) o[e] *= factor[t][e / 2];
                    }
                    ptx::mma_m16n8k16<T>(o, P[t], V_frag[i % 2][2 * n], V_frag[i % 2][2 * n + 1]);
                }
        }
    }

    __device__ __forceinline__ void values(int tile) {
        float factor[2][2];
        const int (&moved)[2] = smem.moved[tile & 1][pair];
        if (moved[0] || moved[1]) {
#pragma unroll
            for (int t = 0; t < 2; ++t)
#pragma unroll
                for (int h = 0; h < 2; ++h)
                    factor[t][h] = moved[t] ? smem.row[tile & 1][pair][t][8 * h + lane / 4] : 1.f;
            values<true>(tile, factor);
        } else {
            values<false>(tile, factor);
        }
    }

    __device__ __forceinline__ void run(const Matrix<T>& Q_gmem, const Matrix<T>& K_gmem,
                                        const Matrix<T>& V_gmem) {
        Loader K_loader(K_gmem, ptx::shared_address(smem.K), threadIdx.x, HEAD_DIM),
            V_loader(V_gmem, ptx::shared_address(smem.V), threadIdx.x, HEAD_DIM);
        K_loader.load_tail(last * KEYS, stage(last), rows.seqlen_k);
        ptx::cp_async_commit();
        QueryRegisters<T, HEAD_DIM> Q(Q_gmem, warp_row, rows.seqlen_q);
        V_loader.load_tail(last * KEYS, stage(last), rows.seqlen_k);
        if (last > 0) K_loader.load((last - 1) * KEYS, stage(last - 1));
        ptx::cp_async_commit();
        Q.arrange();

        // The pair's first tile: until then its rows see no key, and it copies for the others. All warps wait at the same
        // barriers.
        const int first = uniform(Tiles(limit, pair_row, pair_row + 31).end - 1);
        const int masked = uniform(Tiles(limit, warp_row, warp_row).masked);
        const auto sees = [&](int tile) { return BAND == Band::kAll || tile <= first; };
        ptx::cp_async_wait<1>();
        __syncthreads();  // K of the last tile is complete
        if (sees(last)) {
            multiply_qk<T, 0, KEYS>(S, Q, K, stage(last));
            probabilities(last, last >= masked);
        }
#pragma unroll 1
        for (int tile = last; tile > 0; --tile) {
            await();
            if (sees(tile - 1)) multiply_qk<T, 0, KEYS>(S, Q, K, stage(tile - 1));
            copy(tile, K_loader, V_loader);
            if (sees(tile)) values(tile);
            if (sees(tile - 1)) probabilities(tile - 1, BAND != Band::kAll && tile - 1 >= masked);
        }
        await();
        if (sees(0)) values(0);
    }

    // O / l and lse to global memory
    __device__ __forceinline__ void store(const Matrix<T>& O_gmem, const Sequence& rows, const Place& place) {
        const float sink = p.sinks == nullptr ? -INFINITY : p.sinks[place.head];
        float factors[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = place.first_row + 32 * pair + 16 * half + 8 * h + lane / 4;
            const Normalised end(softmax.m[0][h], softmax.l[0][h], sink);
            factors[h] = end.factor;
            // here, as m and l would take registers until the end: 8 bytes of spills on sm_89
            if (row < rows.seqlen_q && p.lse.data != nullptr && lane % 4 == 0)
                *Matrix<float>(p.lse, place.batch, place.head, rows.first_q).at(row, 0) = end.lse();
        }
        publish(1, factors);  // those of tile 1 have been read
        __syncthreads();      // smem.row is complete
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = place.first_row + 32 * pair + 16 * t + 8 * h + lane / 4;
                const float factor = smem.row[1][pair][t][8 * h + lane / 4];
#pragma unroll
                for (int d = 0; d < kColumnTiles; d += 4) {
                    uint32_t pairs[4];
#pragma unroll
                    for (int n = 0; n < 4; ++n)
                        pairs[n] = pack<T>(O[t][d + n][2 * h] * factor, O[t][d + n][2 * h + 1] * factor);
                    const uint4 chunk = transpose_quad(pairs[0], pairs[1], pairs[2], pairs[3]);
                    const int col = 16 * d + lane % 4 / 2 * 32 + 16 * half + lane % 2 * 8;
                    if (row < rows.seqlen_q) *reinterpret_cast<uint4*>(O_gmem.at(row, col)) = chunk;
                }
            }
    }
};

}  // namespace flashcore
