// The scheduler of the persistent kernels: which row blocks a block of threads makes, and which keys they need.
#pragma once
#include "abi/flash_fwd_tma_params.h"
#include "attention/block_range.cuh"
#include "attention/divide.cuh"
#include "flash_fwd/place.cuh"

namespace flashcore {

// A row block for those who multiply: its place and rows, with keys counted from the first tile that is needed, and how many
// tiles it needs. A negative `end` says that it is none, and that no other follows.
struct alignas(16) Task {
    Place place;
    int first_q, seqlen_q, first_k, seqlen_k;
    int end;
};

// BLOCK_Q rows of one head, and their keys in tiles of BLOCK_KV.
template <Band BAND, int BLOCK_Q, int BLOCK_KV>
struct RowBlock {
    Place place;
    Sequence rows;
    KeyLimit<BAND> limit;

    __device__ RowBlock(const FlashFwdParams& p, const Place& place)
        : RowBlock(p, place, Sequence(p.sequences, place.batch)) {}

    __device__ RowBlock(const FlashFwdParams& p, const Task& task)
        : place(task.place),
          rows(task.first_q, task.first_k, task.seqlen_q, task.seqlen_k),
          limit(rows, p.window_left, p.window_right) {}

    __device__ Task task(int end) const {
        return {place, rows.first_q, rows.seqlen_q, rows.first_k, rows.seqlen_k, end};
    }

    // Which tiles `count` of the rows need, those from `first` on. Without such rows, none.
    __device__ BlockRange<BLOCK_KV> tiles(int first, int count) const {
        const int first_row = place.first_row + first;
        BlockRange<BLOCK_KV> range(limit, first_row, min(first_row + count, rows.seqlen_q) - 1);
        if (first_row >= rows.seqlen_q) range.end = 0;
        return range;
    }

  private:
    __device__ RowBlock(const FlashFwdParams& p, const Place& place, const Sequence& all)
        : place(place),
          rows(all.without_keys(BlockRange<BLOCK_KV>::unseen(
              KeyLimit<BAND>(all, p.window_left, p.window_right), place.first_row))),
          limit(rows, p.window_left, p.window_right) {}
};

// The places of the schedule that this block of threads makes, one after the other: back and forth over the grid, so that no
// block gets the longer one of every round. Where the schedule pairs row blocks, the n-th from the end and then the n-th
// from the start: under a causal mask all pairs are as long. To be used by a whole warp.
template <int BLOCK_Q>
struct Places {
    const FlashFwdTmaParams& params;
    int tile, step;
    bool second = false;  // of a pair

    __device__ explicit Places(const FlashFwdTmaParams& params)
        : params(params), tile(blockIdx.x), step(2 * (gridDim.x - blockIdx.x) - 1) {}

    __device__ bool exists() {
        return params.schedule.sequences ? reach_sequences() : tile < params.schedule.tiles;
    }

    __device__ void advance() {
        if (params.schedule.paired) second = !second;
        if (second) return;
        tile += step;
        step = 2 * gridDim.x - step;
    }

    __device__ Place place() const { return params.schedule.sequences ? packed_place() : even_place(); }

  private:
    // Of packed sequences: the first of 32, this lane's, and the row blocks before those of lane 0, and up to its own.
    int next = -32, sequence = 0, before = 0, through = 0;

    // Of a pair that is one row block, the second lies past the last row.
    __device__ Place even_place() const {
        const FlashFwdParams& p = params.fwd;
        const TileSchedule& order = params.schedule;
        const int group = divide(tile, order.group_tiles), of_group = tile - group * order.group_tiles.value;
        const int outer = divide(of_group, p.grid_inner), inner = of_group - outer * p.grid_inner.value;
        const int n = order.heads_first ? outer : inner;
        const int batch_head = order.heads_first ? group * p.grid_inner.value + inner : outer;
        const int batch = divide(batch_head, p.num_heads);
        int row_block = p.row_blocks - 1 - n;
        if (second) row_block = row_block == n ? p.row_blocks : n;
        return {batch, batch_head - batch * p.num_heads.value, row_block * BLOCK_Q};
    }

    // Goes on to the 32 sequences among whose tiles `tile` is, those with most keys first. Without them, false.
    __device__ bool reach_sequences() {
        const FlashFwdParams& p = params.fwd;
        const int lane = threadIdx.x % 32;
        for (;;) {
            const int all = __shfl_sync(kWarp, through, 31);
            if (tile < all * p.num_heads.value) return true;
            next += 32;
            if (next >= params.schedule.sequences) return false;
            Sequence own(0, 0, 0, -1);
            if (next + lane < params.schedule.sequences) own = Sequence(p.sequences, next + lane);
            int rank = 0, from = 0;
#pragma unroll 1
            for (int i = 0; i < 32; ++i) {
                const int keys = __shfl_sync(kWarp, own.seqlen_k, i);
                rank += keys > own.seqlen_k || (keys == own.seqlen_k && i < lane);
            }
#pragma unroll 1
            for (int i = 0; i < 32; ++i)
                if (__shfl_sync(kWarp, rank, i) == lane) from = i;
            sequence = next + from;
            before = all;
            through = (__shfl_sync(kWarp, own.seqlen_q, from) + BLOCK_Q - 1) / BLOCK_Q;
#pragma unroll
            for (int lanes = 1; lanes < 32; lanes *= 2) {
                const int below = __shfl_up_sync(kWarp, through, lanes);
                if (lane >= lanes) through += below;
            }
            through += before;
        }
    }

    __device__ Place packed_place() const {
        const int heads = params.fwd.num_heads.value;
        const int lane = __popc(__ballot_sync(kWarp, tile >= through * heads));  // whose sequence it is
        const int upto = __shfl_sync(kWarp, through, lane),
                  below = __shfl_sync(kWarp, through, max(lane - 1, 0));
        const int from = lane == 0 ? before : below, row_blocks = upto - from;
        const int local = tile - from * heads;
        const int inner_count = params.schedule.heads_first ? heads : row_blocks;
        const int outer = local / inner_count, inner = local - outer * inner_count;
        const int n = params.schedule.heads_first ? outer : inner;
        return {__shfl_sync(kWarp, sequence, lane), params.schedule.heads_first ? inner : outer,
                (row_blocks - 1 - n) * BLOCK_Q};
    }

    static constexpr unsigned kWarp = 0xffffffffu;
};

}  // namespace flashcore
