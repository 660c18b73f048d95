// A row's end: its online softmax and, where there is one, its sink (a logit without a value) give the factor of O and lse.
#pragma once
#include "attention/numeric.cuh"
#include "ptx/exp2.cuh"

namespace flashcore {

// With origin = max(m ln 2, sink) nothing can overflow:
//   total = l e^(m ln 2 - origin) + e^(sink - origin),  factor = e^(m ln 2 - origin) / total,  lse = origin + log total.
// Without a sink (-inf) that is 1 / l and m ln 2 + log l. A row that sees nothing has factor 0 and lse -inf.
struct Normalised {
    float origin, total, factor;

    __device__ Normalised(float m, float l, float sink) {
        const float seen = __fmul_rn(m, kLn2);  // as one number: a fused difference below would not be 0
        origin = fmaxf(seen, sink);
        const float rescale = ptx::exp2_approx((seen - origin) * kLog2E);
        total = fmaf(l, rescale, ptx::exp2_approx((sink - origin) * kLog2E));
        factor = total == 0.f ? 0.f : __fdividef(rescale, total);
    }

    __device__ float lse() const { return total == 0.f ? -INFINITY : origin + logf(total); }
};

}  // namespace flashcore
