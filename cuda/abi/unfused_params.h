// Parameters of the three unfused stages. One struct serves all three: a stage leaves the tensors that it does not use null.
// flashcore_drv/abi.py mirrors this struct; the build compares the two field by field.
#pragma once
#include <cstdint>

#include "abi/tensor.h"

namespace flashcore {

struct UnfusedParams {
    Tensor q;    // [batch, num_heads,    seqlen_q, head_dim]  T      read by qk
    Tensor k;    // [batch, num_heads_kv, seqlen_k, head_dim]  T      read by qk
    Tensor s;    // [batch, num_heads,    seqlen_q, seqlen_k]  float  written by qk, read by softmax
    Tensor p;    // [batch, num_heads,    seqlen_q, seqlen_k]  T      written by softmax, read by pv
    Tensor v;    // [batch, num_heads_kv, seqlen_k, head_dim]  T      read by pv
    Tensor o;    // [batch, num_heads,    seqlen_q, head_dim]  T      written by pv
    Tensor lse;  // [batch, num_heads,    seqlen_q, 1]         float  written by softmax unless null
    int32_t batch;
    int32_t num_heads;
    int32_t
        num_heads_kv;  // divides num_heads: query head h reads key/value head h / (num_heads / num_heads_kv)
    int32_t seqlen_q;
    int32_t seqlen_k;
    int32_t head_dim;     // a multiple of 8, at most the HEAD_DIM that the kernel was built for
    float softmax_scale;  // read by qk
    int32_t causal;       // read by softmax: query i sees keys j <= i + seqlen_k - seqlen_q
};

}  // namespace flashcore
