// Powers of two (PTX ISA: ex2.approx.ftz.f32). Maximum relative error 2^-22; ex2(-inf) = +0.
#pragma once

namespace flashcore::ptx {

__device__ inline float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

}  // namespace flashcore::ptx
