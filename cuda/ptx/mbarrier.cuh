// mbarriers in shared memory (PTX ISA: mbarrier): a phase is over when all expected arrivals and bytes have come; the next
// begins at once. Phases are told apart by their parity, 0 for the first.
#pragma once
#include <cstdint>

namespace flashcore::ptx {

// By one thread, before mbarrier_init_fence and a barrier of the block.
__device__ inline void mbarrier_init(uint32_t barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes this thread's mbarrier_init visible to asynchronous copies.
__device__ inline void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// One arrival, and the phase waits for `bytes` of asynchronous copies as well.
__device__ inline void mbarrier_arrive_expect(uint32_t barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Until the phase of this parity is over. Of a fresh mbarrier the phase before the first, of parity 1, is.
__device__ inline void mbarrier_wait(uint32_t barrier, unsigned parity) {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
        "@!over bra again;\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

}  // namespace flashcore::ptx
