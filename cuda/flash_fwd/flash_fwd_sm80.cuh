// O = softmax(scale * Q @ K^T) @ V and lse = log sum exp(scale * Q @ K^T), fused: mma.sync, ldmatrix, cp.async.
//
// A block makes BLOCK_Q rows of O for one head. Its warps own rows of Q; where key_warps > 1, warps of the same rows own
// different keys of every tile and add up at the end. Tiles are visited from the last key to the first, so that those that
// need a mask come first. K_smem and V_smem have one or two stages; S, P and O live in registers. Where two warps share
// rows (paired_warps.cuh) the body is theirs.
//
// Folded rows: of the block's 2 n tiles of 16 rows, warp w of n has w and 2 n - 1 - w. Then the last keys of a causal block,
// which only the later half of its rows sees, are one tile of rows for every warp instead of two for half of the warps.
#pragma once
#include <type_traits>
#include <utility>

#include "abi/flash_fwd_params.h"
#include "abi/kernel_info.h"
#include "attention/block_range.cuh"
#include "attention/combine.cuh"
#include "attention/mask.cuh"
#include "attention/normalise.cuh"
#include "attention/products.cuh"
#include "attention/scores.cuh"
#include "attention/softmax.cuh"
#include "flash_fwd/paired_warps.cuh"
#include "flash_fwd/place.cuh"
#include "flash_fwd/traits.cuh"
#include "ptx/block_index.cuh"
#include "ptx/compute_now.cuh"
#include "ptx/launch_order.cuh"

namespace flashcore {

// TILING: the table's for an architecture (tiling<>()), or another that scripts/tune.py tries.
template <typename Element, int HEAD_DIM_, Variant VARIANT, Tiling TILING>
struct FlashFwdSm80 {
    using T = Element;
    static constexpr int HEAD_DIM = HEAD_DIM_;
    static constexpr Tiling kTiling = TILING;
    static constexpr bool kScored = VARIANT == Variant::kScored,
                          kGeneral = VARIANT == Variant::kGeneral || kScored;
    // Without lengths from memory and sinks, which would be a cache line more of parameters to wait for.
    static constexpr bool kPlain = VARIANT == Variant::kSmall;
    using Params = std::conditional_t<kScored, FlashFwdScoredParams, FlashFwdParams>;
    static constexpr Band BAND = band(VARIANT);
    static constexpr bool kHeadsFirst = BAND != Band::kAll;  // and the last, longest rows before the others
    static constexpr int BLOCK_Q = kTiling.block_q(), BLOCK_KV = kTiling.block_kv(),
                         kThreads = kTiling.threads(), kBlocksAnSm = kTiling.blocks_an_sm;
    static constexpr int M_TILES = kTiling.m_tiles, KEYS = kTiling.keys, SLICE = kTiling.slice,
                         STAGES = kTiling.stages;

    static constexpr bool kFolded = VARIANT == Variant::kCausal && kTiling.schedule == Schedule::kStraight &&
                                    M_TILES == 2 && STAGES == 2 && kTiling.split_loops &&
                                    kThreads == 16 * Swizzle<HEAD_DIM>::kSpan;
    static constexpr bool kSteps = steps_copies(HEAD_DIM), kKeeps = keeps_addresses(HEAD_DIM, VARIANT);

    static constexpr int kTileBytes = BLOCK_KV * HEAD_DIM * 2, kQBytes = BLOCK_Q * HEAD_DIM * 2;
    static constexpr int kKAt = 0, kVAt = STAGES * kTileBytes, kQAt = 2 * kVAt;
    template <int ROWS, int THREADS>
    using Loader = std::conditional_t<kGeneral, AnyTileLoader<T, ROWS, HEAD_DIM, THREADS>,
                                      TileLoader<T, ROWS, HEAD_DIM, THREADS>>;
    using CombineKeys = Combine<M_TILES, HEAD_DIM, kTiling.row_warps, kTiling.key_warps>;
    static constexpr bool kPaired = kTiling.schedule == Schedule::kPaired;
    using Paired = PairedWarps<T, HEAD_DIM, kTiling.row_warps, BLOCK_KV, BAND>;
    static constexpr int shared_bytes() {
        if constexpr (kPaired) return Paired::kSharedBytes;
        return kQAt + kQBytes;
    }
    static constexpr int kSharedBytes = shared_bytes();
    // The parts of O to add up take the place of K_smem, and their (m, l) that of Q_smem. At the last tile of the
    // pipelined schedule both have been read: Q is in registers, and K_smem was read for the tile before.
    static_assert(kTiling.key_warps == 1 ||
                  (kTiling.schedule == Schedule::kPipelined && kTiling.q_in_registers &&
                   CombineKeys::kPartBytes <= kVAt && CombineKeys::kStateBytes <= kQBytes));
    static_assert(kTiling.schedule != Schedule::kPipelined || BAND == Band::kAll);

    static constexpr KernelInfo info(uint64_t abi_hash) {
        return {abi_hash, kThreads, kSharedBytes, BLOCK_Q, HEAD_DIM, 1, sizeof(Params)};
    }

    __device__ static void run(const Params& params) {
        const FlashFwdParams& p = fwd(params);
        const auto [batch, head, first_row] = place(p, block_index());
        const int head_kv = divide(head, p.group);
        if (!kPlain) ptx::wait_for_prerequisites();  // lengths may be in memory
        const Sequence all = sequence(p, batch);
        if (!kPlain && first_row >= all.seqlen_q) return;  // another sequence is longer

        // from here on, keys are counted from the first tile that is needed
        const Sequence rows = all.without_keys(
            BlockRange<BLOCK_KV>::unseen(KeyLimit<BAND>(all, p.window_left, p.window_right), first_row));
        const Matrix<T> Q(p.q, batch, head, rows.first_q), K(p.k, batch, head_kv, rows.first_k),
            V(p.v, batch, head_kv, rows.first_k);
        const KeyLimit<BAND> limit(rows, p.window_left, p.window_right);
        const BlockRange<BLOCK_KV> tiles(limit, first_row, min(first_row + BLOCK_Q, rows.seqlen_q) - 1);

        if constexpr (kTiling.schedule == Schedule::kPipelined) {
            Warp warp(params, batch, head, rows, limit, tiles, first_row);
            Matrix<T> O(p.o, batch, head, rows.first_q);
            if (tiles.end > 0)
                warp.pipelined(Q, K, V, O);
            else
                ptx::wait_for_prerequisites();
            warp.softmax.finish();
            CombineKeys::run(warp.O, warp.softmax, warp.row_warp, warp.key_warp, kKAt, kQAt);
            warp.store(O, rows, {batch, head, first_row});
        } else {
            std::conditional_t<kPaired, Paired, Warp> warp(params, batch, head, rows, limit, tiles,
                                                           first_row);
            if (kPlain) ptx::wait_for_prerequisites();
            if (tiles.end > 0) warp.run(Q, K, V);
            warp.softmax.finish();
            // once more: registers are worth more than a few loads and divisions
            const Place again = place(p, ptx::block_index_again());
            const Sequence its_rows = sequence(p, again.batch);
            warp.store(Matrix<T>(p.o, again.batch, again.head, its_rows.first_q), its_rows, again);
        }
    }

  private:
    __device__ static Place place(const FlashFwdParams& p, ptx::BlockIndex block) {
        return place_of<kHeadsFirst, BLOCK_Q>(p, block);
    }

    // Small problems wait for what follows from it; large ones have better use for registers.
    __device__ static ptx::BlockIndex block_index() {
        return VARIANT == Variant::kSmall ? ptx::block_index_by_thread()
                                          : ptx::BlockIndex{int(blockIdx.x), int(blockIdx.y)};
    }

    __device__ static const FlashFwdParams& fwd(const FlashFwdParams& p) { return p; }
    __device__ static const FlashFwdParams& fwd(const FlashFwdScoredParams& p) { return p.fwd; }
    __device__ static Sequence sequence(const FlashFwdParams& p, int batch) {
        return kPlain ? Sequence(p.sequences) : Sequence(p.sequences, batch);
    }

    enum class Masked { kNo, kYes, kPerhaps };  // whether a tile needs a mask, as far as the compiler knows

    struct Warp {
        const Params& params;
        const FlashFwdParams& p;
        const int batch, head;
        const Sequence rows;
        const KeyLimit<BAND> limit;
        const BlockRange<BLOCK_KV> tiles;
        const int lane, row_warp, key_warp, first_row;  // first_row: of this block
        const int warp_row;                             // first row of this warp
        const uint32_t shared;
        QueryFragments<M_TILES, HEAD_DIM, kTiling.q_in_registers> Q;
        FragmentAddress<HEAD_DIM> K, V;
        float S[M_TILES][KEYS / 8][4], O[M_TILES][HEAD_DIM / 8][4];
        uint32_t P[KEYS / 16][M_TILES][4];
        OnlineSoftmax<M_TILES> softmax;

        __device__ Warp(const Params& params, int batch, int head, const Sequence& rows,
                        const KeyLimit<BAND>& limit, const BlockRange<BLOCK_KV>& tiles, int first_row)
            : params(params),
              p(fwd(params)),
              batch(batch),
              head(head),
              rows(rows),
              limit(limit),
              tiles(tiles),
              lane(threadIdx.x % 32),
              row_warp(threadIdx.x / 32 % kTiling.row_warps),
              key_warp(threadIdx.x / 32 / kTiling.row_warps),
              first_row(first_row),
              warp_row(first_row + first_of_warp()),
              shared(ptx::dynamic_shared_address()),
              Q(shared + kQAt + row_warp * 16 * M_TILES * HEAD_DIM * 2, lane),
              K(shared + kKAt + key_warp * KEYS * HEAD_DIM * 2, lane % 8 + lane / 16 * 8, lane / 8 % 2),
              V(shared + kVAt + key_warp * KEYS * HEAD_DIM * 2, lane % 16, lane / 16) {
#pragma unroll
            for (int t = 0; t < M_TILES; ++t)
#pragma unroll
                for (int d = 0; d < HEAD_DIM / 8; ++d)
#pragma unroll
                    for (int e = 0; e < 4; ++e) O[t][d][e] = 0.f;
        }

        __device__ static uint32_t stage(int tile) { return STAGES == 1 ? 0 : (tile & 1) * kTileBytes; }
        __device__ int first_key(int tile) const { return tile * BLOCK_KV + key_warp * KEYS; }

        // This warp's tiles of 16 rows: where the first begins in the block, and how far the next is from there.
        __device__ int first_of_warp() const { return row_warp * (kFolded ? 16 : 16 * M_TILES); }
        __device__ int rows_apart() const {
            return kFolded ? 16 * (2 * kTiling.row_warps - 1 - 2 * row_warp) : 16;
        }

        // Whether every row of this warp's tiles of rows up to LAST sees none of the warp's keys.
        template <int LAST = M_TILES - 1>
        __device__ __forceinline__ bool outside(int tile) const {
            return (BAND != Band::kAll &&
                    first_key(tile) > warp_row + LAST * rows_apart() + 15 + limit.last) ||
                   (BAND == Band::kWindow && first_key(tile) + KEYS <= warp_row + limit.first);
        }

        // S = Q @ K^T                                               [16 * M_TILES, KEYS]
        template <int FROM = 0>
        __device__ __forceinline__ void scores(int tile) {
            multiply_qk<T, 0, KEYS, FROM>(S, Q, K, stage(tile));
        }

        // m = max(m, S), P = exp2(scale * S - m), l += sum of P
        template <int FROM = 0>
        __device__ __forceinline__ void searched_softmax(bool speculation_tried) {
            const float scale = kScored ? 1.f : p.scale_log2;
            float peak[M_TILES][2];
            softmax.template search<0, KEYS, FROM>(S, peak);
            softmax.template settle<FROM>(peak, O, scale);
            softmax.template exponentials<T, 0, KEYS, FROM>(S, P, scale, softmax.l);
            softmax.consider_speculation(speculation_tried);
        }

        // S and P, slice by slice, without a search. False if P came out too large: then nothing has happened.
        __device__ __forceinline__ bool speculate(int tile) {
            float sum[M_TILES][2] = {};
            each_slice([&]<int FIRST>() {
                multiply_qk<T, FIRST, SLICE>(S, Q, K, stage(tile));
                softmax.template exponentials<T, FIRST, SLICE>(S, P, p.scale_log2, sum);
            });
            return softmax.accept(sum);
        }

        // S and P of a tile
        template <Masked MASKED>
        __device__ __forceinline__ void probabilities(int tile) {
            if (!kScored && !masked<MASKED>(tile) && softmax.speculation == softmax.kGoing && speculate(tile))
                return;
            scores(tile);
            if constexpr (kScored)
                Scores{params.terms, rows, p.scale_log2, batch, head}.finish(S, warp_row, first_key(tile));
            if (masked<MASKED>(tile)) mask(S, limit, warp_row, rows_apart(), first_key(tile));
            searched_softmax(!masked<MASKED>(tile));
        }

        // S, P and O of a tile whose keys the first of two folded tiles of rows does not see
        __device__ __forceinline__ void later_rows(int tile) {
            scores<1>(tile);
            mask<1>(S, limit, warp_row, rows_apart(), first_key(tile));
            searched_softmax<1>(false);
            multiply_pv<T, 0, KEYS, 1>(O, P, V, stage(tile));
        }

        template <Masked MASKED>
        __device__ bool masked(int tile) const {
            return MASKED == Masked::kYes ||
                   (MASKED == Masked::kPerhaps &&
                    (tile >= tiles.masked || (BAND == Band::kWindow && tile < tiles.clear)));
        }

        // step<MASKED>(tile) from tile `first` down to the first tile of keys
        template <typename Step>
        __device__ __forceinline__ void for_each_tile(int first, const Step& step) const {
            int tile = first;
            if constexpr (kTiling.split_loops) {
#pragma unroll 1
                for (; tile >= tiles.masked; --tile) step.template operator()<Masked::kYes>(tile);
#pragma unroll 1
                for (; tile >= (BAND == Band::kWindow ? tiles.clear : 0); --tile)
                    step.template operator()<Masked::kNo>(tile);
                if constexpr (BAND == Band::kWindow) {
#pragma unroll 1
                    for (; tile >= 0; --tile) step.template operator()<Masked::kYes>(tile);
                }
            } else {
#pragma unroll 1
                for (; tile >= 0; --tile) step.template operator()<Masked::kPerhaps>(tile);
            }
        }

        // K or V of the tile before `tile`, which was copied last
        template <typename Loader>
        __device__ __forceinline__ static void copy_before(int tile, Loader& loader) {
            if constexpr (kSteps)
                loader.load_previous(stage(tile - 1));
            else
                loader.load((tile - 1) * BLOCK_KV, stage(tile - 1));
        }

        __device__ __forceinline__ void run(const Matrix<T>& Q_gmem, const Matrix<T>& K_gmem,
                                            const Matrix<T>& V_gmem) {
            Loader<BLOCK_KV, kThreads> K_loader(K_gmem, shared + kKAt, threadIdx.x, p.head_dim),
                V_loader(V_gmem, shared + kVAt, threadIdx.x, p.head_dim_v);
            const int last = tiles.end - 1;
            Loader<BLOCK_Q, kThreads>(Q_gmem, shared + kQAt, threadIdx.x, p.head_dim)
                .template load_tail<kFolded>(first_row, 0, rows.seqlen_q);
            K_loader.load_tail(last * BLOCK_KV, stage(last), rows.seqlen_k);
            ptx::cp_async_commit();
            V_loader.load_tail(last * BLOCK_KV, stage(last), rows.seqlen_k);
            ptx::cp_async_commit();
            ptx::cp_async_wait<1>();
            __syncthreads();  // Q_smem is complete
            Q.begin();
            if constexpr (kKeeps) {
                ptx::compute_now(K.base), ptx::compute_now(V.base);
                if constexpr (!kTiling.q_in_registers) ptx::compute_now(Q.address.base);
            }

            for_each_tile(last, [&]<Masked MASKED>(int tile) {
                ptx::cp_async_wait<0>();
                __syncthreads();  // K_smem (with 2 stages V_smem, too) is complete; every warp is done with the tile before
                if constexpr (STAGES == 1) {
                    if (tile < last) V_loader.load(tile * BLOCK_KV, 0);
                } else if (tile > 0) {
                    copy_before(tile, K_loader);
                    copy_before(tile, V_loader);
                }
                ptx::cp_async_commit();

                if constexpr (kFolded && MASKED == Masked::kYes) {
                    if (outside<0>(tile)) {
                        if (!outside(tile)) later_rows(tile);
                        return;
                    }
                }
                if (MASKED == Masked::kNo || !outside(tile)) probabilities<MASKED>(tile);
                if constexpr (STAGES == 1) {
                    ptx::cp_async_wait<0>();
                    __syncthreads();  // V_smem is complete; every warp has read K_smem
                    if (tile > 0) K_loader.load((tile - 1) * BLOCK_KV, 0);
                    ptx::cp_async_commit();
                }
                // O += P @ V
                if (MASKED == Masked::kNo || !outside(tile)) multiply_pv<T, 0, KEYS>(O, P, V, stage(tile));
            });
        }

        // Slice by slice, S of the next tile is made between P and O of this one: independent work for a warp that has a
        // scheduler to itself. S of the next tile takes the registers of this one's, so nothing is speculative here.
        __device__ __forceinline__ void pipelined(const Matrix<T>& Q_gmem, const Matrix<T>& K_gmem,
                                                  const Matrix<T>& V_gmem, Matrix<T>& O_gmem) {
            Loader<BLOCK_KV, kThreads> K_loader(K_gmem, shared + kKAt, threadIdx.x, p.head_dim),
                V_loader(V_gmem, shared + kVAt, threadIdx.x, p.head_dim_v);
            const int last = tiles.end - 1;
            ptx::wait_for_prerequisites();  // no earlier: all before it is beside the kernel before
            Loader<BLOCK_Q, kThreads>(Q_gmem, shared + kQAt, threadIdx.x, p.head_dim)
                .load_tail(first_row, 0, rows.seqlen_q);
            K_loader.load_tail(last * BLOCK_KV, stage(last), rows.seqlen_k);
            ptx::cp_async_commit();
            V_loader.load_tail(last * BLOCK_KV, stage(last), rows.seqlen_k);
            if (last > 0) K_loader.load((last - 1) * BLOCK_KV, stage(last - 1));
            ptx::cp_async_commit();
            O_gmem.compute_now();  // while the tiles travel: at the end its parameters would be waited for
            ptx::cp_async_wait<1>();
            __syncthreads();  // Q_smem and K_smem of the last tile are complete
            Q.begin();
            scores(last);
            mask(S, limit, warp_row, rows_apart(), first_key(last));  // the only tile that ends past seqlen_k
            float peak[M_TILES][2];
            softmax.template search<0, KEYS>(S, peak);

            const auto step = [&]<bool LAST>(int tile) {
                ptx::cp_async_wait<0>();
                __syncthreads();  // K of the next tile and V of this one are complete; K of this and V of the one before are read
                if constexpr (!LAST) {
                    V_loader.load((tile - 1) * BLOCK_KV, stage(tile - 1));
                    if (tile > 1) K_loader.load((tile - 2) * BLOCK_KV, stage(tile));
                    ptx::cp_async_commit();
                }
                softmax.settle(peak, O, p.scale_log2);
                each_slice([&]<int FIRST>() {
                    softmax.template exponentials<T, FIRST, SLICE>(S, P, p.scale_log2, softmax.l);
                    if constexpr (!LAST) multiply_qk<T, FIRST, SLICE>(S, Q, K, stage(tile - 1));
                    multiply_pv<T, FIRST, SLICE>(O, P, V, stage(tile));
                    if constexpr (!LAST) softmax.template search<FIRST, SLICE>(S, peak);
                });
            };
#pragma unroll 1
            for (int tile = last; tile > 0; --tile) step.template operator()<false>(tile);
            step.template operator()<true>(0);
        }

        // This lane's row h of tile t of rows, in the block
        __device__ int row_of(int t, int h) const {
            return first_of_warp() + t * rows_apart() + 8 * h + lane / 4;
        }

        // O / l and, in a loop of its own behind a branch that all threads take, lse to global memory
        __device__ __forceinline__ void store(const Matrix<T>& O_gmem, const Sequence& rows,
                                              const Place& place) const {
            constexpr int TILES = CombineKeys::kOwnTiles;
            const int first_col = CombineKeys::first_column(key_warp);
            const float sink = kPlain || p.sinks == nullptr ? -INFINITY : p.sinks[place.head];
#pragma unroll
            for (int t = 0; t < M_TILES; ++t)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int row = place.first_row + row_of(t, h);
                    const Normalised end(softmax.m[t][h], softmax.l[t][h], sink);
                    uint32_t pairs[TILES];
#pragma unroll
                    for (int i = 0; i < TILES; ++i)
                        pairs[i] = pack<T>(O[t][i][2 * h] * end.factor, O[t][i][2 * h + 1] * end.factor);
                    if (TILES % 4 == 0 && (!kGeneral || O_gmem.aligned)) {
#pragma unroll
                        for (int i = 0; i + 3 < TILES; i += 4) {
                            const uint4 chunk =
                                transpose_quad(pairs[i], pairs[i + 1], pairs[i + 2], pairs[i + 3]);
                            const int col = first_col + 8 * (i + lane % 4);
                            if (row < rows.seqlen_q && (!kGeneral || col < p.head_dim_v))
                                *reinterpret_cast<uint4*>(O_gmem.at(row, col)) = chunk;
                        }
                    } else {
#pragma unroll
                        for (int i = 0; i < TILES; ++i)
                            if (row < rows.seqlen_q && (!kGeneral || first_col + 8 * i < p.head_dim_v))
                                store_pair(O_gmem.at(row, first_col + 8 * i + lane % 4 * 2), pairs[i],
                                           !kGeneral || O_gmem.aligned);
                    }
                }
            if (p.lse.data == nullptr) return;
            const Matrix<float> lse(p.lse, place.batch, place.head, rows.first_q);
#pragma unroll
            for (int t = 0; t < M_TILES; ++t)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int row = place.first_row + row_of(t, h);
                    if (row < rows.seqlen_q && lane % 4 == 0 && key_warp == 0)
                        *lse.at(row, 0) = Normalised(softmax.m[t][h], softmax.l[t][h], sink).lse();
                }
        }

        template <typename F>
        __device__ __forceinline__ static void each_slice(const F& f) {
            [&]<int... I>(std::integer_sequence<int, I...>) {
                (f.template operator()<I * SLICE>(), ...);
            }(std::make_integer_sequence<int, KEYS / SLICE>{});
        }
    };
};

}  // namespace flashcore
