// Copies of boxes of a tensor in global memory that a tensor map describes (PTX ISA: cp.async.bulk.tensor), and the fence
// between them or wgmma and ordinary accesses to shared memory. What of a box lies outside the tensor reads as zero.
#pragma once
#include <cstdint>

namespace flashcore::ptx {

// The box at (col, row, head, batch) to shared memory; its bytes complete at `barrier`. One thread; `map` points at a
// kernel parameter or to global memory.
__device__ inline void tma_load(uint32_t target, const void* map, uint32_t barrier, int col, int row,
                                int head, int batch) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6}], [%2];" ::"r"(target),
        "l"(map), "r"(barrier), "r"(col), "r"(row), "r"(head), "r"(batch)
        : "memory");
}

__device__ inline void tma_prefetch_map(const void* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// This thread's ordinary accesses to shared memory come before the asynchronous ones that follow a barrier: of wgmma and
// bulk copies.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace flashcore::ptx
