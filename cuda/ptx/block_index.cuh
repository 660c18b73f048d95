// The index of the block in the grid.
#pragma once

namespace flashcore::ptx {

struct BlockIndex {
    int x, y;
};

// Read anew: what follows from it is computed again instead of kept in registers until then.
__device__ inline BlockIndex block_index_again() {
    BlockIndex i;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(i.x));
    asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(i.y));
    return i;
}

// The same in registers of each thread, of a block in one dimension: what follows from it is computed there, with less
// latency than on the pipe for what all threads share.
__device__ inline BlockIndex block_index_by_thread() {
    return {int(blockIdx.x + threadIdx.y), int(blockIdx.y)};
}

}  // namespace flashcore::ptx
