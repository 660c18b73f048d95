// Four 8 x 8 matrices of 16-bit elements from a warp's registers to shared memory (PTX ISA: stmatrix), the inverse of
// ldmatrix: lane l gives the address of row l % 8 of matrix l / 8, a multiple of 16; r[i] is the lane's piece of matrix i.
#pragma once
#include <cstdint>

namespace flashcore::ptx {

__device__ inline void stmatrix_x4(uint32_t row, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

}  // namespace flashcore::ptx
