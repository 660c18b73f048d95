// Parameters of the fused forward kernels (cuda/flash_fwd).
// flashcore_drv/abi.py mirrors this struct; the build compares the two field by field.
#pragma once
#include <cstdint>

#include "abi/divisor.h"
#include "abi/tensor.h"

namespace flashcore {

struct FlashFwdParams {
    Tensor q;    // [batch, num_heads,    seqlen_q, head_dim]  T
    Tensor k;    // [batch, num_heads_kv, seqlen_k, head_dim]  T
    Tensor v;    // [batch, num_heads_kv, seqlen_k, head_dim]  T
    Tensor o;    // [batch, num_heads,    seqlen_q, head_dim]  T
    Tensor lse;  // [batch, num_heads,    seqlen_q, 1]         float, natural logarithm; null if not wanted
    Divisor
        grid_inner;  // blockIdx.x = outer * inner + rest: inner counts row blocks, or heads in causal kernels
    Divisor num_heads;
    Divisor group;  // query heads that share a key/value head
    int32_t row_blocks;
    int32_t seqlen_q;
    int32_t seqlen_k;
    int32_t head_dim;  // a multiple of 8, at most the HEAD_DIM that the kernel was built for
    int32_t
        diagonal;  // query i sees keys j <= i + diagonal: seqlen_k - seqlen_q for causal, 2^30 for all keys
    float scale_log2;  // of the scores: softmax_scale * log2(e)
    int32_t unused;
};

}  // namespace flashcore
