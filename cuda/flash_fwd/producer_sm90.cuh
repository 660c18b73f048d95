// The warp that copies Q, K and V to shared memory, in the order in which the warpgroups that multiply need them.
#pragma once
#include "flash_fwd/row_blocks.cuh"
#include "flash_fwd/stages_sm90.cuh"
#include "ptx/tma.cuh"

namespace flashcore {

// Kernel: FlashFwdSm90. Runs in a whole warp; its first lane issues the copies.
template <typename Kernel>
struct ProducerSm90 {
    using Shared = typename Kernel::Shared;
    static constexpr int BLOCK_Q = Kernel::BLOCK_Q, BLOCK_KV = Kernel::BLOCK_KV;

    const FlashFwdTmaParams& params;
    const Shared& shared;
    const bool first_lane;
    Ring<Shared::kStages> ring;  // K and V of a tile are at the same stage
    int tasks = 0;
    unsigned landed_parity = 0;

    __device__ ProducerSm90(const FlashFwdTmaParams& params, const Shared& shared)
        : params(params), shared(shared), first_lane(threadIdx.x % 32 == 0) {}

    __device__ void run() {
        if (params.schedule.sequences)
            load_tasks<PackedPlaces<BLOCK_Q>>();
        else
            load_tasks<Places<BLOCK_Q>>();
        if (first_lane) shared.task(tasks) = {{}, 0, 0, 0, 0, -1};
        load_q(false, 0, 0, 0, 0);
    }

  private:
    template <typename Places>
    __device__ __forceinline__ void load_tasks() {
        const FlashFwdParams& p = params.fwd;
        for (Places places(params); places.exists(); places.advance()) {
            const typename Kernel::Block block(p, places.place());
            int tile = block.tiles(0, BLOCK_Q).end - 1;
            if (first_lane) shared.task(tasks) = block.task(tile + 1);
            const bool packed = p.sequences.cu_seqlens_q != nullptr;
            const int batch = packed ? 0 : block.place.batch, head_kv = divide(block.place.head, p.group);
            int first_key = block.rows.first_k + tile * BLOCK_KV;
            if (tile >= 0) load_k(first_key, head_kv, batch);
            load_q(tile >= 0, block.rows.first_q + block.place.first_row, block.place.head, batch,
                   packed ? block.rows.seqlen_q - block.place.first_row : BLOCK_Q);
            if (tile < 0) continue;
            // rows past a sequence's end are in memory where its length is: else the tensor map knows the end
            const int keys = block.rows.seqlen_k - tile * BLOCK_KV;
            if (keys < BLOCK_KV && (packed || p.sequences.seqused_k != nullptr))
                load_v_tail(first_key, head_kv, batch, keys);
            else
                load_v(first_key, head_kv, batch);
            ring = ring.next();
#pragma unroll 1
            for (; tile > 0; --tile) {
                first_key -= BLOCK_KV;
                load_k(first_key, head_kv, batch);
                load_v(first_key, head_kv, batch);
                ring = ring.next();
            }
        }
    }

    // Q of a task, and the sign that there is one: also where it needs no Q. Only `rows` are the sequence's: scores of others
    // would have a part in when a warp moves its origins, and so in the bits of these.
    __device__ void load_q(bool needed, int first_row, int head, int batch, int rows) {
#pragma unroll 1
        for (int i = 0; i < Shared::kWarpgroups; ++i) {
            if (first_lane) ptx::mbarrier_wait(shared.q_empty(i), tasks & 1 ^ 1);
            const int row = first_row + 64 * i, own = rows - 64 * i;
            if (needed && own < 64)
                load_tail(shared.q(i), Shared::kQTileBytes, params.q_map, shared.q_full(i), row, head, batch,
                          max(own, 0));
            else if (first_lane && needed)
                copy(shared.q(i), Shared::kQTileBytes, params.q_map, shared.q_full(i), row, head, batch);
            else if (first_lane)
                ptx::mbarrier_arrive(shared.q_full(i));
        }
        ++tasks;
    }

    // A tile of shared memory for every 64 columns.
    __device__ void copy(uint32_t target, int tile_bytes, const TensorMap& map, uint32_t barrier, int row,
                         int head, int batch) const {
        ptx::mbarrier_arrive_expect(barrier, Shared::kColTiles * tile_bytes);
#pragma unroll
        for (int c = 0; c < Shared::kColTiles; ++c)
            ptx::tma_load(target + c * tile_bytes, &map, barrier, 64 * c, row, head, batch);
    }

    __device__ void load_k(int first_key, int head, int batch) {
        if (first_lane) {
            ptx::mbarrier_wait(shared.k_empty(ring.stage), ring.parity ^ 1);
            copy(shared.k(ring.stage), Shared::kTileBytes, params.k_map, shared.k_full(ring.stage), first_key,
                 head, batch);
        }
    }

    __device__ void load_v(int first_key, int head, int batch) {
        if (first_lane) {
            ptx::mbarrier_wait(shared.v_empty(ring.stage), ring.parity ^ 1);
            copy(shared.v(ring.stage), Shared::kTileBytes, params.v_map, shared.v_full(ring.stage), first_key,
                 head, batch);
        }
    }

    // Only `keys` rows are the sequence's. P is 0 for the others, but 0 * NaN is not: they become zero.
    __device__ void load_v_tail(int first_key, int head, int batch, int keys) {
        if (first_lane) ptx::mbarrier_wait(shared.v_empty(ring.stage), ring.parity ^ 1);
        load_tail(shared.v(ring.stage), Shared::kTileBytes, params.v_map, shared.v_full(ring.stage),
                  first_key, head, batch, keys);
    }

    // A copy of which all but the first rows become zero. Of the whole warp.
    __device__ void load_tail(uint32_t target, int tile_bytes, const TensorMap& map, uint32_t full,
                              int first_row, int head, int batch, int rows) {
        if (first_lane) copy(target, tile_bytes, map, shared.landed(), first_row, head, batch);
        ptx::mbarrier_wait(shared.landed(), landed_parity);
        landed_parity ^= 1;
        for (int at = 128 * rows + 16 * (threadIdx.x % 32); at < tile_bytes; at += 16 * 32)
#pragma unroll
            for (int c = 0; c < Shared::kColTiles; ++c)
                ptx::store_shared(target + c * tile_bytes + at, {0, 0, 0, 0});
        ptx::fence_proxy_async();
        __syncwarp();
        if (first_lane) ptx::mbarrier_arrive(full);
    }
};

}  // namespace flashcore
