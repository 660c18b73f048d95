// Parameters of the merge of two partial results (cuda/flash_fwd/merge.cuh).
// flashcore_drv/abi.py mirrors this struct; the build compares the two field by field.
#pragma once
#include <cstdint>

#include "abi/divisor.h"
#include "abi/tensor.h"

namespace flashcore {

struct MergeParams {
    Tensor out_a;  // [batch, num_heads, seqlen_q, head_dim_v]  T
    Tensor lse_a;  // [batch, num_heads, seqlen_q, 1]           float
    Tensor out_b;
    Tensor lse_b;
    Tensor out;
    Tensor lse;
    Divisor seqlen_q;
    Divisor num_heads;
    int32_t rows;  // batch * num_heads * seqlen_q
    int32_t head_dim_v;
};

}  // namespace flashcore
