// Shared memory of the fused forward on sm_90a: Q, the stages of K and V, O on its way out, and the mbarriers that tell when
// a buffer is full (the copy has landed) and empty (every warp has read it).
#pragma once
#include "flash_fwd/row_blocks.cuh"
#include "flash_fwd/traits_sm90.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/shared_memory.cuh"

namespace flashcore {

// A place in a ring of STAGES buffers, and the parity of its phases: each `full` phase of a stage follows an `empty` one.
template <int STAGES>
struct Ring {
    int stage = 0;
    unsigned parity = 0;

    __device__ Ring next() const {
        return stage + 1 == STAGES ? Ring{0, parity ^ 1} : Ring{stage + 1, parity};
    }
};

// Matrices lie in tiles of 64 columns, 128 bytes a row, one tile after the other; the last one is padded to 64.
template <int HEAD_DIM, TilingSm90 TILING>
struct SharedSm90 {
    static constexpr int kWarpgroups = TILING.warpgroups, kStages = TILING.stages;
    static constexpr int kColTiles = (HEAD_DIM + 63) / 64;
    static constexpr int kQTileBytes = 64 * 128, kQBytes = kColTiles * kQTileBytes;  // of a warpgroup
    static constexpr int kTileBytes = TILING.keys * 128, kStageBytes = kColTiles * kTileBytes;
    static constexpr int kOutputBytes = 16 * 128;  // of a warp
    static constexpr int kTasks = 4;
    static constexpr int kKAt = kWarpgroups * kQBytes, kVAt = kKAt + kStages * kStageBytes,
                         kOutputAt = kVAt + kStages * kStageBytes,
                         kTasksAt = kOutputAt + 4 * kWarpgroups * kOutputBytes,
                         kBarriersAt = kTasksAt + kTasks * int(sizeof(Task));
    static constexpr int kBytes = kBarriersAt + 8 * (2 * kWarpgroups + 4 * kStages + 1);
    static_assert(kBytes <= 227 * 1024);
    static_assert(TILING.keys % 8 == 0, "tiles begin at whole atoms of the swizzle");

    unsigned char* const memory;
    const uint32_t base;

    __device__ SharedSm90() : memory(ptx::swizzled_shared_memory()), base(ptx::shared_address(memory)) {}

    __device__ uint32_t q(int warpgroup) const { return base + warpgroup * kQBytes; }
    __device__ uint32_t k(int stage) const { return base + kKAt + stage * kStageBytes; }
    __device__ uint32_t v(int stage) const { return base + kVAt + stage * kStageBytes; }
    __device__ uint32_t output(int warp) const { return base + kOutputAt + warp * kOutputBytes; }
    // What the producer says of the n-th row block, for which q_full is the sign. With four of them none is written anew before
    // every warpgroup has given back Q of the second next, and so has stored O of this one.
    __device__ Task& task(int n) const { return reinterpret_cast<Task*>(memory + kTasksAt)[n % kTasks]; }

    __device__ uint32_t q_full(int warpgroup) const { return barrier(warpgroup); }
    __device__ uint32_t q_empty(int warpgroup) const { return barrier(kWarpgroups + warpgroup); }
    __device__ uint32_t k_full(int stage) const { return barrier(2 * kWarpgroups + stage); }
    __device__ uint32_t k_empty(int stage) const { return barrier(2 * kWarpgroups + kStages + stage); }
    __device__ uint32_t v_full(int stage) const { return barrier(2 * kWarpgroups + 2 * kStages + stage); }
    __device__ uint32_t v_empty(int stage) const { return barrier(2 * kWarpgroups + 3 * kStages + stage); }
    // Of a copy of V whose last rows the producer has to make zero.
    __device__ uint32_t landed() const { return barrier(2 * kWarpgroups + 4 * kStages); }

    // By one thread. Each warp that multiplies says for itself that it has read a buffer.
    __device__ void initialise() const {
        for (int i = 0; i < kWarpgroups; ++i) {
            ptx::mbarrier_init(q_full(i), 1);
            ptx::mbarrier_init(q_empty(i), 4);
        }
        for (int i = 0; i < kStages; ++i) {
            ptx::mbarrier_init(k_full(i), 1);
            ptx::mbarrier_init(v_full(i), 1);
            ptx::mbarrier_init(k_empty(i), 4 * kWarpgroups);
            ptx::mbarrier_init(v_empty(i), 4 * kWarpgroups);
        }
        ptx::mbarrier_init(landed(), 1);
        ptx::mbarrier_init_fence();
    }

  private:
    __device__ uint32_t barrier(int i) const { return base + kBarriersAt + 8 * i; }
};

}  // namespace flashcore
