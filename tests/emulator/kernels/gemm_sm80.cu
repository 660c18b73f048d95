// C = A @ B^T in the style of sm_80: cp.async into two stages, ldmatrix, mma.sync. A [m, k], B [n, k], C [m, n].
#include <cuda_fp16.h>

#include <cstdint>

namespace {

constexpr int BLOCK_M = 64, BLOCK_N = 64, BLOCK_K = 32, kThreads = 128, kStages = 2;

struct Tile {
    __half at[BLOCK_M * BLOCK_K];

    // Rows of 64 bytes; the 16-byte pieces of a row are exchanged so that eight neighbouring rows cover all banks.
    __device__ static int place(int row, int piece) { return row * BLOCK_K + ((piece ^ (row >> 1 & 3)) * 8); }
    __device__ uint32_t address(int row, int piece) const {
        return static_cast<uint32_t>(__cvta_generic_to_shared(&at[place(row, piece)]));
    }
};

__device__ void load(Tile& tile, const __half* matrix, int first_row, int rows, int first_col, int k) {
    for (int i = threadIdx.x; i < BLOCK_M * BLOCK_K / 8; i += kThreads) {
        const int row = i / (BLOCK_K / 8), piece = i % (BLOCK_K / 8);
        const bool inside = first_row + row < rows;
        const __half* source = matrix + (inside ? (first_row + row) * k + first_col + piece * 8 : 0);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(tile.address(row, piece)),
                     "l"(source), "r"(inside ? 16 : 0)
                     : "memory");
    }
}

__device__ void ldmatrix(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    gemm_sm80(const __half* a, const __half* b, float* c, int m, int n, int k) {
    extern __shared__ __align__(128) unsigned char memory[];
    Tile* a_smem = reinterpret_cast<Tile*>(memory);
    Tile* b_smem = a_smem + kStages;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_row = blockIdx.y * BLOCK_M,
              first_col = blockIdx.x * BLOCK_N;
    float sum[BLOCK_N / 8][4] = {};

    const auto start = [&](int step) {
        if (step * BLOCK_K < k) {
            load(a_smem[step % kStages], a, first_row, m, step * BLOCK_K, k);
            load(b_smem[step % kStages], b, first_col, n, step * BLOCK_K, k);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    start(0);
    for (int step = 0; step * BLOCK_K < k; ++step) {
        start(step + 1);
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();  // the tiles of this step are complete
        for (int piece = 0; piece < BLOCK_K / 8; piece += 2) {
            uint32_t a_frag[4], b_frag[4];
            ldmatrix(a_frag, a_smem[step % kStages].address(warp * 16 + lane % 16, piece + lane / 16));
            for (int j = 0; j < BLOCK_N / 16; ++j) {
                ldmatrix(b_frag, b_smem[step % kStages].address(j * 16 + lane % 8 + lane / 16 * 8,
                                                                piece + lane / 8 % 2));
                mma(sum[2 * j], a_frag, b_frag[0], b_frag[1]);
                mma(sum[2 * j + 1], a_frag, b_frag[2], b_frag[3]);
            }
        }
        __syncthreads();  // every warp has read this stage: the next copy may overwrite it
    }
    for (int j = 0; j < BLOCK_N / 8; ++j)
        for (int e = 0; e < 4; ++e) {
            const int row = first_row + warp * 16 + lane / 4 + e / 2 * 8,
                      col = first_col + j * 8 + lane % 4 * 2 + e % 2;
            if (row < m && col < n) c[row * n + col] = sum[j][e];
        }
}
