// No instruction: a place in the program where a value must have been computed, and cannot be computed again later.
#pragma once
#include <cstdint>

namespace flashcore::ptx {

template <typename Value>
__device__ inline void compute_now(Value& value) {
    static_assert(sizeof(Value) == 8);
    asm volatile("" : "+l"(value));
}
__device__ inline void compute_now(uint32_t& value) { asm volatile("" : "+r"(value)); }

}  // namespace flashcore::ptx
