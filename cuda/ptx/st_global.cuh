// Vector stores to global memory (PTX ISA: st). Written out because nvcc splits some vector stores into scalar ones.
#pragma once
#include <cstdint>

namespace flashcore::ptx {

// 16 bytes; `target` is a multiple of 16.
__device__ inline void st_global_v4(void* target, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(a), "r"(b), "r"(c), "r"(d)
                 : "memory");
}

// 8 bytes; `target` is a multiple of 8.
__device__ inline void st_global_v2(void* target, uint32_t a, uint32_t b) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(target), "r"(a), "r"(b) : "memory");
}

}  // namespace flashcore::ptx
