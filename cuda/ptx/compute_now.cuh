// No instruction: a place in the program where a 64-bit value must have been computed, and cannot be computed again later.
#pragma once

namespace flashcore::ptx {

template <typename Value>
__device__ inline void compute_now(Value& value) {
    static_assert(sizeof(Value) == 8);
    asm volatile("" : "+l"(value));
}

}  // namespace flashcore::ptx
