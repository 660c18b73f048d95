// What a block makes: BLOCK_Q rows of O of one head.
#pragma once
#include "abi/flash_fwd_params.h"
#include "attention/divide.cuh"
#include "ptx/block_index.cuh"

namespace flashcore {

struct Place {
    int batch, head, first_row;
};

// HEADS_FIRST: heads come in groups, blockIdx.y of them; blockIdx.x counts the heads of a group fastest and starts with the
// last rows. Else blockIdx.x counts blocks of rows fastest.
template <bool HEADS_FIRST, int BLOCK_Q>
__device__ Place place_of(const FlashFwdParams& p, ptx::BlockIndex block) {
    const int outer = divide(block.x, p.grid_inner), inner = block.x - outer * p.grid_inner.value;
    const int row_block = HEADS_FIRST ? p.row_blocks - 1 - outer : inner,
              batch_head = HEADS_FIRST ? block.y * p.grid_inner.value + inner : outer;
    const int batch = divide(batch_head, p.num_heads);
    return {batch, batch_head - batch * p.num_heads.value, row_block * BLOCK_Q};
}

}  // namespace flashcore
