// What a block makes: BLOCK_Q rows of O of one head.
#pragma once
#include "abi/flash_fwd_params.h"
#include "attention/divide.cuh"

namespace flashcore {

struct Place {
    int batch, head, first_row;
};

// HEADS_FIRST: the grid counts heads fastest and starts with the last rows, else it counts blocks of rows.
template <bool HEADS_FIRST, int BLOCK_Q>
__device__ Place place_of(const FlashFwdParams& p, int block) {
    const int outer = divide(block, p.grid_inner), inner = block - outer * p.grid_inner.value;
    const int row_block = HEADS_FIRST ? p.row_blocks - 1 - outer : inner,
              batch_head = HEADS_FIRST ? inner : outer;
    const int batch = divide(batch_head, p.num_heads);
    return {batch, batch_head - batch * p.num_heads.value, row_block * BLOCK_Q};
}

}  // namespace flashcore
