// Asynchronous copies from global to shared memory (PTX ISA: cp.async, cp.async.commit_group, cp.async.wait_group).
#pragma once
#include <cstdint>

namespace flashcore::ptx {

// Copies the first `bytes` of the 16 bytes at `source` and zero-fills the rest; source bytes past `bytes` are not read.
__device__ inline void cp_async_16(uint32_t target, const void* source, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes)
                 : "memory");
}

__device__ inline void cp_async_16(uint32_t target, const void* source) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source) : "memory");
}

__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups are in flight.
template <int PENDING>
__device__ inline void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

}  // namespace flashcore::ptx
