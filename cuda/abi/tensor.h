// A tensor [batch, heads, rows, cols] in global memory with contiguous columns. Strides are in elements.
#pragma once
#include <cstdint>

namespace flashcore {

struct Tensor {
    void* data;
    int64_t batch_stride;
    int64_t head_stride;
    int64_t row_stride;
};

}  // namespace flashcore
