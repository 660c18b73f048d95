// C = A @ B^T in the style of sm_90: one warp loads tiles through TMA into a ring, a warpgroup multiplies them with wgmma,
// the result leaves through shared memory and TMA. A [m, k], B [n, k], C [m, n], all f16; tiles of 64 x 64.
#include <cuda.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace {

constexpr int kTile = 64, kTileBytes = kTile * kTile * 2, kStages = 2;

__device__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ void wait(uint32_t barrier, int parity) {
    asm volatile(
        "{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again; }" ::"r"(
            barrier),
        "r"(parity)
        : "memory");
}

__device__ void load(uint32_t target, const CUtensorMap* map, uint32_t barrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
        "[%2];" ::"r"(target),
        "l"(map), "r"(barrier), "r"(x), "r"(y)
        : "memory");
}

// Rows of 128 bytes with the 128-byte swizzle, eight of them an atom of 1024 bytes.
__device__ uint64_t descriptor(uint32_t address) {
    return uint64_t((address & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(64) << 32 | uint64_t(1) << 62;
}

__device__ void multiply(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, "
        "%11, %12, %13, %14, %15,"
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, "
        "0, 0; }"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
          "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
          "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(int(accumulate)));
}

}  // namespace

extern "C" __global__ void __launch_bounds__(160)
    gemm_sm90(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b,
              const __grid_constant__ CUtensorMap c, int k) {
    extern __shared__ __align__(1024) unsigned char memory[];
    __shared__ alignas(8) uint64_t full[kStages], empty[kStages];
    const uint32_t a_smem = shared_address(memory), b_smem = a_smem + kStages * kTileBytes,
                   c_smem = b_smem + kStages * kTileBytes;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.y * kTile,
              col = blockIdx.x * kTile, steps = k / kTile;

    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[s])) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 4;" ::"r"(shared_address(&empty[s]))
                         : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();  // the barriers exist
    if (warp == 4) {
        if (lane == 0)
            for (int step = 0; step < steps; ++step) {
                const int s = step % kStages;
                wait(shared_address(&empty[s]), (step / kStages & 1) ^ 1);
                asm volatile(
                    "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&full[s])),
                    "r"(2 * kTileBytes)
                    : "memory");
                load(a_smem + s * kTileBytes, &a, shared_address(&full[s]), step * kTile, row);
                load(b_smem + s * kTileBytes, &b, shared_address(&full[s]), step * kTile, col);
            }
        return;
    }
    float d[32];
    for (int step = 0; step < steps; ++step) {
        const int s = step % kStages;
        wait(shared_address(&full[s]), step / kStages & 1);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        for (int i = 0; i < kTile / 16; ++i)
            multiply(d, descriptor(a_smem + s * kTileBytes + i * 32),
                     descriptor(b_smem + s * kTileBytes + i * 32), step + i > 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        if (lane == 0)
            asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&empty[s]))
                         : "memory");
    }
    for (int j = 0; j < kTile / 8; j += 2) {
        uint32_t r[4];
        for (int i = 0; i < 4; ++i) {
            const __half2 pair = __floats2half2_rn(d[j * 4 + 2 * i], d[j * 4 + 2 * i + 1]);
            r[i] = reinterpret_cast<const uint32_t&>(pair);
        }
        const int r_row = warp * 16 + lane % 16, piece = (j + lane / 16) ^ (r_row & 7);
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         c_smem + r_row * 128 + piece * 16),
                     "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                     : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("bar.sync 1, 128;" ::: "memory");  // C_smem is complete
    if (threadIdx.x == 0) {
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&c),
                     "r"(c_smem), "r"(col), "r"(row)
                     : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    }
}
