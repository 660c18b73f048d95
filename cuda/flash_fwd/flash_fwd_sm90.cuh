// O = softmax(scale * Q @ K^T) @ V and lse = log sum exp(scale * Q @ K^T), fused, for sm_90a: TMA, mbarriers, wgmma.
//
// A block stays on its SM and makes one row block after the other (Places). One warp of it copies tiles to shared memory
// (ProducerSm90), each of two or three warpgroups multiplies 64 of the rows with all of them (ConsumerSm90).
#pragma once
#include "abi/flash_fwd_tma_params.h"
#include "abi/kernel_info.h"
#include "flash_fwd/consumer_sm90.cuh"
#include "flash_fwd/producer_sm90.cuh"
#include "flash_fwd/scheduler_sm90.cuh"
#include "flash_fwd/traits_sm90.cuh"
#include "ptx/launch_order.cuh"
#include "ptx/register_budget.cuh"
#include "ptx/tma.cuh"

namespace flashcore {

template <typename Element, int HEAD_DIM_, Variant VARIANT, TilingSm90 TILING>
struct FlashFwdSm90 {
    using T = Element;
    using Params = FlashFwdTmaParams;
    static constexpr int HEAD_DIM = HEAD_DIM_;
    static constexpr TilingSm90 kTiling = TILING;
    static constexpr Band BAND = band(VARIANT);
    static constexpr bool kScored = VARIANT == Variant::kScored;
    static constexpr int BLOCK_Q = TILING.block_q(), BLOCK_KV = TILING.keys,
                         kLoadingRegisters = TILING.loading_registers(),
                         kMultiplyingRegisters = TILING.multiplying_registers();
    static_assert(TILING.registers_suffice());
    using Shared = SharedSm90<HEAD_DIM, TILING>;
    using Block = RowBlock<BAND, BLOCK_Q, BLOCK_KV>;
    static constexpr int kThreads = TILING.threads(), kBlocksAnSm = 1, kSharedBytes = Shared::kBytes;

    static constexpr KernelInfo info(uint64_t abi_hash) {
        return {abi_hash, kThreads,       kSharedBytes, BLOCK_Q,  HEAD_DIM,
                1,        sizeof(Params), 64,           BLOCK_KV, kBlocksAnSm};
    }

    __device__ static void run(const Params& params) {
        const Shared shared;
        // warps of the loading warpgroup: the one that loads, the one that schedules, and two that have nothing else to do
        const int warp = threadIdx.x / 32 - 4 * TILING.warpgroups;
        if (threadIdx.x == 0) shared.initialise();
        if (warp == 1) {
            ptx::wait_for_prerequisites();
            SchedulerSm90<FlashFwdSm90>(params, shared).publish_first();
        }
        // 600 cycles each, which the first copies would take longer
        if (warp == 2) ptx::tma_prefetch_map(&params.k_map);
        if (warp == 3) ptx::tma_prefetch_map(&params.q_map);
        __syncthreads();  // the mbarriers exist, and the first task
        // here for both roles: the one reads lengths and tensors, the other sinks and score terms, and writes
        ptx::wait_for_prerequisites();
        // a block takes an SM, so the next kernel's blocks come as these end, however early this is
        ptx::launch_dependents();
        // the same for a warp: its addresses can be computed once for all lanes
        const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0);
        if (warpgroup == TILING.warpgroups) {
            ptx::give_up_registers<kLoadingRegisters>();
            if (warp == 0) ProducerSm90<FlashFwdSm90>(params, shared).run();
            if (warp == 1) SchedulerSm90<FlashFwdSm90>(params, shared).run();
        } else {
            ptx::take_registers<kMultiplyingRegisters>();
            ConsumerSm90<FlashFwdSm90>(params, shared, warpgroup).run();
        }
    }
};

}  // namespace flashcore
