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

// Which of the tiles this block of threads makes: it goes back and forth over the grid, so that no block gets the longer one
// of every round.
struct Round {
    int tile = blockIdx.x, step = 2 * (gridDim.x - blockIdx.x) - 1;

    __device__ void advance() {
        tile += step;
        step = 2 * gridDim.x - step;
    }
};

// The places that a block makes, one after the other, where all sequences have as many tiles. Where the schedule pairs row
// blocks, the n-th from the end and then the n-th from the start: under a causal mask all pairs are as long.
template <int BLOCK_Q>
struct Places {
    const FlashFwdTmaParams& params;
    Round round;
    bool second = false;  // of a pair

    __device__ explicit Places(const FlashFwdTmaParams& params) : params(params) {}

    __device__ bool exists() const { return round.tile < params.schedule.tiles; }

    __device__ void advance() {
        if (params.schedule.paired) second = !second;
        if (!second) round.advance();
    }

    // Of a pair that is one row block, the second lies past the last row.
    __device__ Place place() const {
        const FlashFwdParams& p = params.fwd;
        const TileSchedule& order = params.schedule;
        const int group = divide(round.tile, order.group_tiles),
                  of_group = round.tile - group * order.group_tiles.value;
        const int outer = divide(of_group, p.grid_inner), inner = of_group - outer * p.grid_inner.value;
        const int n = order.heads_first ? outer : inner;
        const int batch_head = order.heads_first ? group * p.grid_inner.value + inner : outer;
        const int batch = divide(batch_head, p.num_heads);
        int row_block = p.row_blocks - 1 - n;
        if (second) row_block = row_block == n ? p.row_blocks : n;
        return {batch, batch_head - batch * p.num_heads.value, row_block * BLOCK_Q};
    }
};

// The same of packed sequences, which have as many tiles each as their lengths ask for: one after the other, with the last
// rows first. For a whole warp, each lane of which knows one of 32 sequences.
template <int BLOCK_Q>
struct PackedPlaces {
    const FlashFwdTmaParams& params;
    Round round;
    int first = -32;              // of the sequences
    int before = 0, through = 0;  // row blocks before the first of them, and up to the end of this lane's

    __device__ explicit PackedPlaces(const FlashFwdTmaParams& params) : params(params) {}

    // Goes on to the 32 sequences among whose tiles the next one is. Without them, false.
    __device__ bool exists() {
        const int lane = threadIdx.x % 32;
        for (;;) {
            const int all = __shfl_sync(kWarp, through, 31);
            if (round.tile < all * params.fwd.num_heads.value) return true;
            first += 32;
            if (first >= params.schedule.sequences) return false;
            const int rows = first + lane < params.schedule.sequences
                                 ? Sequence(params.fwd.sequences, first + lane).seqlen_q
                                 : 0;
            before = all;
            through = (rows + BLOCK_Q - 1) / BLOCK_Q;
#pragma unroll
            for (int lanes = 1; lanes < 32; lanes *= 2) {
                const int below = __shfl_up_sync(kWarp, through, lanes);
                if (lane >= lanes) through += below;
            }
            through += before;
        }
    }

    __device__ void advance() { round.advance(); }

    __device__ Place place() const {
        const int heads = params.fwd.num_heads.value;
        const bool heads_first = params.schedule.heads_first;
        const int n = __popc(__ballot_sync(kWarp, round.tile >= through * heads));  // of the 32
        const int end = __shfl_sync(kWarp, through, n), below = __shfl_sync(kWarp, through, max(n - 1, 0));
        const int begin = n == 0 ? before : below, row_blocks = end - begin;
        const int tile = round.tile - begin * heads, inner_count = heads_first ? heads : row_blocks;
        const int outer = tile / inner_count, inner = tile - outer * inner_count;
        const int row_block = row_blocks - 1 - (heads_first ? outer : inner);
        return {first + n, heads_first ? inner : outer, row_block * BLOCK_Q};
    }

  private:
    static constexpr unsigned kWarp = 0xffffffffu;
};

}  // namespace flashcore
