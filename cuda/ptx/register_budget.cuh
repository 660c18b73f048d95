// How many registers the threads of a warpgroup may use from here on (PTX ISA: setmaxnreg): a multiple of 8 from 24 to
// 256. All warps of the warpgroup execute it; an increase waits until other warpgroups have given up as many.
#pragma once

namespace flashcore::ptx {

template <int REGISTERS>
__device__ inline void give_up_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

}  // namespace flashcore::ptx
