// The barriers 1 to 15 of a block (0 is __syncthreads), for `threads` of its threads, whole warps (PTX ISA: barrier.cta).
#pragma once

namespace flashcore::ptx {

__device__ inline void named_barrier_sync(int barrier, int threads) {
    asm volatile("barrier.cta.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Without waiting for the others.
__device__ inline void named_barrier_arrive(int barrier, int threads) {
    asm volatile("barrier.cta.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

}  // namespace flashcore::ptx
