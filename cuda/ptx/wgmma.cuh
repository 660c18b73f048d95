// d = a @ b + d of a warpgroup: four consecutive warps, the first a multiple of four (PTX ISA: wgmma.mma_async m64nNk16).
//
// d is 64 x N in fp32; warp w of the four has its rows 16 w to 16 w + 15, in the layout of N / 8 tiles of mma.m16n8k16
// (ptx/mma.cuh). A product runs on its own until wgmma_wait for its group; before that d and the registers of a must not be
// touched. wgmma_fence comes before a product whose registers other instructions wrote, wgmma_pin after a wait.
//
// Operands in shared memory are tiles of rows of 128 bytes, 64 elements, under the 128-byte swizzle: eight rows are an atom
// of 1024 bytes, whose address is a multiple of that. Wider matrices are several tiles, one after the other.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flashcore::ptx {

// Of rows that begin with the atom at `address`, where the product sums over columns: 16 columns on are 32 bytes on.
__device__ inline uint64_t wgmma_descriptor(uint32_t address) {
    constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kAtomStride = uint64_t(1024 >> 4) << 32;
    return kSwizzle128 | kAtomStride | uint64_t(1) << 16 | (address >> 4 & 0x3fff);
}

// Of columns of the tile at `address` and of those `tile_bytes` apart, where the product sums over rows: 16 rows on are 2048
// bytes on.
__device__ inline uint64_t wgmma_descriptor_transposed(uint32_t address, uint32_t tile_bytes) {
    constexpr uint64_t kSwizzle128 = uint64_t(1) << 62, kAtomStride = uint64_t(1024 >> 4) << 32;
    return kSwizzle128 | kAtomStride | uint64_t(tile_bytes >> 4) << 16 | (address >> 4 & 0x3fff);
}

// What a descriptor grows by for an address `bytes` on.
__device__ constexpr uint64_t wgmma_step(int bytes) { return bytes >> 4; }

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most PENDING of the warpgroup's groups are in flight.
template <int PENDING>
__device__ inline void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// No instruction: keeps uses of d on their side of this point. A wait does not name the registers that it is for.
template <int N_TILES>
__device__ inline void wgmma_pin(float (&d)[N_TILES][4]) {
#pragma unroll
    for (int n = 0; n < N_TILES; ++n)
        asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
}

// Products with 16 elements of the summed dimension; d = a @ b where not `accumulate`.
template <typename T, int N>
struct Wgmma;

// The operand list of d, and d's operands: PTX wants every register by its name.
#define FLASHCORE_TEN(t) \
    "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"
#define FLASHCORE_40 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " FLASHCORE_TEN(1) ", " FLASHCORE_TEN(2) ", " FLASHCORE_TEN(3)
#define FLASHCORE_80 \
    FLASHCORE_40 ", " FLASHCORE_TEN(4) ", " FLASHCORE_TEN(5) ", " FLASHCORE_TEN(6) ", " FLASHCORE_TEN(7)
#define FLASHCORE_120 \
    FLASHCORE_80 ", " FLASHCORE_TEN(8) ", " FLASHCORE_TEN(9) ", " FLASHCORE_TEN(10) ", " FLASHCORE_TEN(11)
#define FLASHCORE_D1(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define FLASHCORE_D4(n) FLASHCORE_D1(n), FLASHCORE_D1(n + 1), FLASHCORE_D1(n + 2), FLASHCORE_D1(n + 3)
#define FLASHCORE_D8(n) FLASHCORE_D4(n), FLASHCORE_D4(n + 4)

// X0 to X5: the names of the operands after d's.
//   ab    a [64, 16] and b [N, 16] in shared memory (wgmma_descriptor), d = a @ b^T
//   rv    a in registers as for mma.m16n8k16, b [16, N] in shared memory (wgmma_descriptor_transposed), d = a @ b
#define FLASHCORE_WGMMA(T, TYPE, N, LIST, X0, X1, X2, X3, X4, X5, ...)                                      \
    template <>                                                                                             \
    struct Wgmma<T, N> {                                                                                    \
        __device__ __forceinline__ static void ab(float (&d)[N / 8][4], uint64_t a, uint64_t b,             \
                                                  bool accumulate) {                                        \
            asm volatile("{ .reg .pred p; setp.ne.b32 p, " X2 ", 0; wgmma.mma_async.sync.aligned.m64n" #N   \
                         "k16.f32." TYPE "." TYPE " {" LIST "}, " X0 ", " X1 ", p, 1, 1, 0, 0; }"           \
                         : __VA_ARGS__                                                                      \
                         : "l"(a), "l"(b), "r"(int(accumulate)));                                           \
        }                                                                                                   \
        __device__ __forceinline__ static void rv(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b, \
                                                  bool accumulate) {                                        \
            asm volatile("{ .reg .pred p; setp.ne.b32 p, " X5 ", 0; wgmma.mma_async.sync.aligned.m64n" #N   \
                         "k16.f32." TYPE "." TYPE " {" LIST "}, {" X0 ", " X1 ", " X2 ", " X3 "}, " X4      \
                         ", p, 1, 1, 1; }"                                                                  \
                         : __VA_ARGS__                                                                      \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)));       \
        }                                                                                                   \
    };
#define FLASHCORE_WGMMA_TYPES(...)              \
    FLASHCORE_WGMMA(__half, "f16", __VA_ARGS__) \
    FLASHCORE_WGMMA(__nv_bfloat16, "bf16", __VA_ARGS__)

// clang-format off
FLASHCORE_WGMMA_TYPES(64, "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " FLASHCORE_TEN(1) ", " FLASHCORE_TEN(2) ", %30, %31",
                      "%32", "%33", "%34", "%35", "%36", "%37", FLASHCORE_D8(0))
FLASHCORE_WGMMA_TYPES(80, FLASHCORE_40, "%40", "%41", "%42", "%43", "%44", "%45",
                      FLASHCORE_D8(0), FLASHCORE_D1(8), FLASHCORE_D1(9))
FLASHCORE_WGMMA_TYPES(96, FLASHCORE_40 ", %40, %41, %42, %43, %44, %45, %46, %47",
                      "%48", "%49", "%50", "%51", "%52", "%53", FLASHCORE_D8(0), FLASHCORE_D4(8))
FLASHCORE_WGMMA_TYPES(128, FLASHCORE_40 ", " FLASHCORE_TEN(4) ", " FLASHCORE_TEN(5) ", %60, %61, %62, %63",
                      "%64", "%65", "%66", "%67", "%68", "%69", FLASHCORE_D8(0), FLASHCORE_D8(8))
FLASHCORE_WGMMA_TYPES(192, FLASHCORE_80 ", " FLASHCORE_TEN(8) ", %90, %91, %92, %93, %94, %95",
                      "%96", "%97", "%98", "%99", "%100", "%101", FLASHCORE_D8(0), FLASHCORE_D8(8), FLASHCORE_D8(16))
FLASHCORE_WGMMA_TYPES(256, FLASHCORE_120 ", %120, %121, %122, %123, %124, %125, %126, %127",
                      "%128", "%129", "%130", "%131", "%132", "%133", FLASHCORE_D8(0), FLASHCORE_D8(8), FLASHCORE_D8(16), FLASHCORE_D8(24))
// clang-format on

#undef FLASHCORE_WGMMA_TYPES
#undef FLASHCORE_WGMMA
#undef FLASHCORE_D8
#undef FLASHCORE_D4
#undef FLASHCORE_D1
#undef FLASHCORE_120
#undef FLASHCORE_80
#undef FLASHCORE_40
#undef FLASHCORE_TEN

}  // namespace flashcore::ptx
