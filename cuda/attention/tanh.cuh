// tanh in float32 to about 2 ulp.
#pragma once
#include "attention/numeric.cuh"
#include "ptx/exp2.cuh"

namespace flashcore {

// 1 - 2 / (e^2|x| + 1), which loses the digits of small x: these have a polynomial, x + x^3 q(x^2), whose coefficients
// minimise the largest relative error on [0, 0.625] (Remez by Lawson's weights; 4e-9 before rounding).
__device__ inline float tanh_exact(float x) {
    const float large = 1.f - __fdividef(2.f, ptx::exp2_approx(fabsf(x) * (2.f * kLog2E)) + 1.f);
    const float z = x * x;
    float q = fmaf(z, -0.00570499f, 0.02063909f);
    q = fmaf(z, q, -0.05373971f);
    q = fmaf(z, q, 0.13331442f);
    q = fmaf(z, q, -0.33333282f);
    return fabsf(x) < 0.625f ? fmaf(x, z * q, x) : copysignf(large, x);
}

}  // namespace flashcore
