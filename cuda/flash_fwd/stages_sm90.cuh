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
    static constexpr int kQBuffers = TILING.q_buffers, kTasks = 4;
    static constexpr int kKAt = kQBuffers * kWarpgroups * kQBytes, kVAt = kKAt + kStages * kStageBytes,
                         kOutputAt = kVAt + kStages * kStageBytes,
                         kTasksAt = kOutputAt + 4 * kWarpgroups * kOutputBytes,
                         kBarriersAt = kTasksAt + kTasks * int(sizeof(Task));
    static constexpr int kSigns =
        kQBuffers * kWarpgroups + 2 * kStages + kTasks + 1;  // that a buffer is full
    static constexpr int kBarriers = 2 * kSigns - 1;
    static constexpr int kBytes = kBarriersAt + 8 * kBarriers;
    static_assert(kBytes <= 227 * 1024);
    static_assert(TILING.keys % 8 == 0, "tiles begin at whole atoms of the swizzle");

    unsigned char* const memory;
    const uint32_t base;

    __device__ SharedSm90() : memory(ptx::swizzled_shared_memory()), base(ptx::shared_address(memory)) {}

    __device__ uint32_t q(int warpgroup, int buffer) const {
        return base + (buffer * kWarpgroups + warpgroup) * kQBytes;
    }
    __device__ uint32_t k(int stage) const { return base + kKAt + stage * kStageBytes; }
    __device__ uint32_t v(int stage) const { return base + kVAt + stage * kStageBytes; }
    __device__ uint32_t output(int warp) const { return base + kOutputAt + warp * kOutputBytes; }
    // The n-th row block, by the scheduler. Warps that multiply give it back once they have stored O of it.
    __device__ Task& task(int n) const { return reinterpret_cast<Task*>(memory + kTasksAt)[n % kTasks]; }

    __device__ uint32_t q_full(int warpgroup, int buffer) const {
        return barrier(buffer * kWarpgroups + warpgroup);
    }
    __device__ uint32_t k_full(int stage) const { return barrier(kKSign + stage); }
    __device__ uint32_t v_full(int stage) const { return barrier(kVSign + stage); }
    __device__ uint32_t task_full(int n) const { return barrier(kTaskSign + n % kTasks); }
    // Of a copy of which the producer has to make the last rows zero.
    __device__ uint32_t landed() const { return barrier(kSigns - 1); }
    __device__ uint32_t q_empty(int warpgroup, int buffer) const {
        return q_full(warpgroup, buffer) + 8 * kSigns;
    }
    __device__ uint32_t k_empty(int stage) const { return k_full(stage) + 8 * kSigns; }
    __device__ uint32_t v_empty(int stage) const { return v_full(stage) + 8 * kSigns; }
    __device__ uint32_t task_empty(int n) const { return task_full(n) + 8 * kSigns; }

    // By one thread: 25 lanes that make and fence one each took 2,000 cycles more. Each warp that multiplies says for itself
    // that it has read a buffer.
    __device__ void initialise() const {
#pragma unroll
        for (int i = 0; i < kBarriers; ++i) {
            const int empty = i - kSigns;
            const int warps = empty < kKSign ? 4 : empty < kTaskSign ? 4 * kWarpgroups : 4 * kWarpgroups + 1;
            ptx::mbarrier_init(barrier(i), empty < 0 ? 1 : warps);
        }
        ptx::mbarrier_init_fence();
    }

  private:
    static constexpr int kKSign = kQBuffers * kWarpgroups, kVSign = kKSign + kStages,
                         kTaskSign = kVSign + kStages;

    __device__ uint32_t barrier(int i) const { return base + kBarriersAt + 8 * i; }
};

}  // namespace flashcore
