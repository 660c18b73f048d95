// Parameters of the fused forward kernels (cuda/flash_fwd).
// flashcore_drv/abi.py mirrors these structs; the build compares them field by field.
#pragma once
#include <cstdint>

#include "abi/divisor.h"
#include "abi/score_terms.h"
#include "abi/sequences.h"
#include "abi/tensor.h"

namespace flashcore {

struct FlashFwdParams {
    Tensor q;    // [batch, num_heads,    seqlen_q, head_dim]    T
    Tensor k;    // [batch, num_heads_kv, seqlen_k, head_dim]    T
    Tensor v;    // [batch, num_heads_kv, seqlen_k, head_dim_v]  T
    Tensor o;    // [batch, num_heads,    seqlen_q, head_dim_v]  T
    Tensor lse;  // [batch, num_heads,    seqlen_q, 1]           float, natural logarithm; null if not wanted
    Divisor
        grid_inner;  // blockIdx.x = outer * inner + rest: inner counts row blocks, or a group's heads in causal kernels
    Divisor num_heads;
    Divisor group;  // query heads that share a key/value head
    int32_t row_blocks;
    int32_t head_dim;    // multiples of 8, at most the HEAD_DIM that the kernel was built for
    int32_t head_dim_v;  // the same
    int32_t
        window_left;  // query i sees keys from i + offset - window_left to i + offset + window_right, where
    int32_t window_right;  // offset = seqlen_k - seqlen_q; 2^30: no limit on that side
    float scale_log2;      // of the scores: softmax_scale * log2(e)
    Sequences sequences;   // where they are packed, tensors have batch_stride 0 and their rows in one axis
    const float* sinks;    // [num_heads] a logit more in each row's softmax, without a value; null: none
};

// Of kernels whose scores have more terms.
struct FlashFwdScoredParams {
    FlashFwdParams fwd;
    ScoreTerms terms;
};

}  // namespace flashcore
