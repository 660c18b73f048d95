// What scores consist of besides scale * Q @ K^T.
// flashcore_drv/abi.py mirrors this struct; the build compares the two field by field.
#pragma once
#include <cstdint>

#include "abi/tensor.h"

namespace flashcore {

enum BiasType : int32_t { kNoBias, kBiasF16, kBiasBf16, kBiasF32 };

struct ScoreTerms {
    Tensor bias;                // [batch, num_heads, seqlen_q, seqlen_k], strides 0 where it is broadcast
    const float* alibi_slopes;  // [num_heads] or [batch, num_heads]; null: none
    int64_t alibi_batch_stride;
    int32_t bias_type;        // a BiasType
    int32_t bias_col_stride;  // 0 or 1
    int32_t bias_pairs;       // whether every pair of neighbours from an even key on is aligned to its size
    float softcap_log2;       // softcap * log2(e), where scores are softcap * tanh(scores / softcap); else 0
    float softcap_inverse;    // softmax_scale / softcap
    int32_t unused;
};

}  // namespace flashcore
