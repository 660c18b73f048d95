// Kernels of a stream that overlap (PTX ISA: griddepcontrol): where a launch allows it, a kernel starts before the one before
// it has ended. In other launches both are an instruction that does nothing; before sm_90 there are none.
#pragma once

namespace flashcore::ptx {

// Until every kernel that this one depends on has ended and its writes are visible to this whole grid: before the first access
// to global memory. Every grid waits, for the kernel after it waits for this one alone. ptxas moves it up to the branch or
// barrier before it, and with it the set-up in between behind it.
__device__ inline void wait_for_prerequisites() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may start when every block of this one has come here or ended, where there is room for its blocks.
__device__ inline void launch_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace flashcore::ptx
