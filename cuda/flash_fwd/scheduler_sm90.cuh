// The warp that says which row blocks this block of threads makes, ahead of those who load and multiply.
#pragma once
#include "flash_fwd/row_blocks.cuh"
#include "flash_fwd/stages_sm90.cuh"

namespace flashcore {

// Kernel: FlashFwdSm90. Runs in a whole warp.
template <typename Kernel>
struct SchedulerSm90 {
    using Shared = typename Kernel::Shared;
    static constexpr int BLOCK_Q = Kernel::BLOCK_Q;

    const FlashFwdTmaParams& params;
    const Shared& shared;
    int tasks = 0;

    __device__ SchedulerSm90(const FlashFwdTmaParams& params, const Shared& shared)
        : params(params), shared(shared) {}

    __device__ void run() {
        if (params.schedule.sequences)
            publish_all<PackedPlaces<BLOCK_Q>>();
        else
            publish_all<Places<BLOCK_Q>>();
        publish({{}, 0, 0, 0, 0, -1});
    }

  private:
    template <typename Places>
    __device__ __forceinline__ void publish_all() {
        for (Places places(params); places.exists(); places.advance()) {
            const typename Kernel::Block block(params.fwd, places.place());
            publish(block.task(block.tiles(0, BLOCK_Q).end));
        }
    }

    __device__ void publish(const Task& task) {
        if (threadIdx.x % 32 == 0) {
            ptx::mbarrier_wait(shared.task_empty(tasks), tasks / Shared::kTasks & 1 ^ 1);
            shared.task(tasks) = task;
            ptx::mbarrier_arrive(shared.task_full(tasks));
        }
        ++tasks;
    }
};

}  // namespace flashcore
