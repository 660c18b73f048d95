// The block's dynamic shared memory, and addresses in the shared state space.
#pragma once
#include <cstdint>

namespace flashcore::ptx {

template <typename Layout>
__device__ inline Layout& dynamic_shared_memory() {
    extern __shared__ __align__(128) unsigned char flashcore_dynamic_shared_memory[];
    return *reinterpret_cast<Layout*>(flashcore_dynamic_shared_memory);
}

__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// PTX ISA: ld.shared.v4, st.shared.v4
__device__ inline uint4 load_shared(uint32_t source) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(source)
                 : "memory");
    return x;
}
__device__ inline void store_shared(uint32_t target, const uint32_t (&x)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(x[0]), "r"(x[1]), "r"(x[2]),
                 "r"(x[3])
                 : "memory");
}

__device__ inline uint32_t dynamic_shared_address() {
    return shared_address(&dynamic_shared_memory<unsigned char>());
}

// The same memory where tiles are swizzled by 128 bytes: a multiple of 1024.
__device__ inline unsigned char* swizzled_shared_memory() {
    extern __shared__ __align__(1024) unsigned char flashcore_swizzled_shared_memory[];
    return flashcore_swizzled_shared_memory;
}

}  // namespace flashcore::ptx
