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

}  // namespace flashcore::ptx
