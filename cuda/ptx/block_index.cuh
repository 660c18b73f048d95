// The index of the block, read anew: what follows from it is computed again instead of kept in registers until then.
#pragma once

namespace flashcore::ptx {

__device__ inline int block_index_again() {
    int x;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
    return x;
}

}  // namespace flashcore::ptx
