// Integer division by a number that the host has prepared.
#pragma once
#include "abi/divisor.h"

namespace flashcore {

__device__ inline int divide(int n, const Divisor& by) {
    return int(uint64_t(uint32_t(n)) * uint32_t(by.multiplier) >> by.shift);
}

}  // namespace flashcore
