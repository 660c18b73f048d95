// Parameters of the fused forward kernels that copy tensors by TMA (cuda/flash_fwd/*_sm90.cuh).
// flashcore_drv/abi.py mirrors these structs; the build compares them field by field.
#pragma once
#include <cstdint>

#include "abi/divisor.h"
#include "abi/flash_fwd_params.h"
#include "abi/score_terms.h"
#include "abi/tensor_map.h"

namespace flashcore {

// The order in which the tiles [0, tiles) of the result are made: block n of the grid begins with tile n. A tile is a row
// block of one head or, where they are paired, the n-th from the end and the n-th from the start.
struct TileSchedule {
    // of a group of heads; FlashFwdParams::grid_inner divides these: it counts tiles of a head, or heads
    Divisor group_tiles;
    int32_t tiles;
    int32_t heads_first;  // whether grid_inner counts heads, those of a group; else all heads are one group
    int32_t paired;
    int32_t sequences;  // packed, with as many tiles each as their lengths ask for; 0: all have as many
};

struct FlashFwdTmaParams {
    FlashFwdParams fwd;  // row_blocks counts blocks of this kernel's rows
    ScoreTerms terms;    // zeros where scores have no more terms
    TileSchedule schedule;
    // [batch, heads, rows, cols] with cols the contiguous dimension 0; of packed sequences batch is 1 and rows are all.
    // A box is 64 columns, 128-byte swizzled, of box_rows_q or box_rows_kv rows (KernelInfo); what lies outside is 0.
    TensorMap q_map;  // [batch, num_heads,    seqlen_q, head_dim]
    TensorMap k_map;  // [batch, num_heads_kv, seqlen_k, head_dim]
    TensorMap v_map;  // [batch, num_heads_kv, seqlen_k, head_dim_v]
};

}  // namespace flashcore
