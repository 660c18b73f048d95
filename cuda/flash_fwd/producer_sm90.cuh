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
        const FlashFwdParams& p = params.fwd;
        const bool packed = p.sequences.cu_seqlens_q != nullptr;
        for (;; ++tasks) {
            if (tasks > 0) ptx::mbarrier_wait(shared.task_full(tasks), tasks / Shared::kTasks & 1);
            const Task task = shared.task(tasks);
            __syncwarp();
            if (first_lane) ptx::mbarrier_arrive(shared.task_empty(tasks));
            int tile = task.end - 1;
            const int batch = packed ? 0 : task.place.batch, head_kv = divide(task.place.head, p.group);
            int first_key = task.first_k + tile * BLOCK_KV;
            if (tile >= 0) load_k(first_key, head_kv, batch);
            load_q(tile >= 0, task.first_q + task.place.first_row, task.place.head, batch,
                   packed ? task.seqlen_q - task.place.first_row : BLOCK_Q);
            if (task.end < 0) break;
            if (tile < 0) continue;
            // rows past a sequence's end are in memory where its length is: else the tensor map knows the end
            const int keys = task.seqlen_k - tile * BLOCK_KV;
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

  private:
    // Q of a task, and the sign that there is one: also where it needs no Q. Only `rows` are the sequence's: scores of others
    // would have a part in when a warp moves its origins, and so in the bits of these.
    __device__ __forceinline__ void load_q(bool needed, int first_row, int head, int batch, int rows) {
        const int buffer = tasks % Shared::kQBuffers;
#pragma unroll 1
        for (int i = 0; i < Shared::kWarpgroups; ++i) {
            if (first_lane) ptx::mbarrier_wait(shared.q_empty(i, buffer), tasks / Shared::kQBuffers & 1 ^ 1);
            const int row = first_row + 64 * i, own = rows - 64 * i;
            if (needed && own > 0 && own < 64)
                load_tail(shared.q(i, buffer), Shared::kQTileBytes, params.q_map, shared.q_full(i, buffer),
                          row, head, batch, own);
            else if (first_lane && needed && own > 0)
                copy(shared.q(i, buffer), Shared::kQTileBytes, params.q_map, shared.q_full(i, buffer), row,
                     head, batch);
            else if (first_lane)
                ptx::mbarrier_arrive(shared.q_full(i, buffer));
        }
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
