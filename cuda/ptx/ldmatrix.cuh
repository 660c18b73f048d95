// Four 8 x 8 matrices of 16-bit elements from shared memory to a warp's registers (PTX ISA: ldmatrix). Lane l gives the
// address of row l % 8 of matrix l / 8, a multiple of 16; r[i] is the lane's piece of matrix i.
#pragma once
#include <cstdint>

namespace flashcore::ptx {

__device__ inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// Each matrix is transposed on the way.
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

}  // namespace flashcore::ptx
