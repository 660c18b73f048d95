// The warp that says which row blocks this block of threads makes, ahead of those who load and multiply. The first of them is
// found while the mbarriers are made, as nothing else can begin without it.
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

    // Before the barrier of the block that mbarriers need.
    __device__ void publish_first() {
        Task task{{}, 0, 0, 0, 0, -1};
        if (params.schedule.sequences)
            find_first<PackedPlaces<BLOCK_Q>>(task);
        else
            find_first<Places<BLOCK_Q>>(task);
        if (threadIdx.x % 32 == 0) shared.task(0) = task;
    }

    // After it.
    __device__ void run() {
        if (params.schedule.sequences)
            publish_all<PackedPlaces<BLOCK_Q>>();
        else
            publish_all<Places<BLOCK_Q>>();
        publish({{}, 0, 0, 0, 0, -1});
    }

  private:
    template <typename Places>
    __device__ __forceinline__ void find_first(Task& task) const {
        Places places(params);
        if (places.exists()) task = task_at(places.place());
    }

    template <typename Places>
    __device__ __forceinline__ void publish_all() {
        for (Places places(params); places.exists(); places.advance()) {
            if (tasks == 0)
                publish({});
            else
                publish(task_at(places.place()));
        }
    }

    __device__ Task task_at(const Place& place) const {
        const typename Kernel::Block block(params.fwd, place);
        return block.task(block.tiles(0, BLOCK_Q).end);
    }

    // The first is there already.
    __device__ void publish(const Task& task) {
        if (threadIdx.x % 32 == 0) {
            if (tasks > 0) {
                ptx::mbarrier_wait(shared.task_empty(tasks), tasks / Shared::kTasks & 1 ^ 1);
                shared.task(tasks) = task;
            }
            ptx::mbarrier_arrive(shared.task_full(tasks));
        }
        ++tasks;
    }
};

}  // namespace flashcore
