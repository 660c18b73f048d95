// The most that mma.sync m16n8k16 can do, fp16 in and fp32 accumulated: operands stay in registers, and every warp has
// chains enough to hide the latency of an instruction. The ceiling of every kernel of the sm_80 family.
#include "ptx/mma.cuh"

namespace {

constexpr int kChains = 8;  // independent accumulators of a warp

struct Params {
    float* out;  // [gridDim.x, blockDim.x]
    int64_t steps;
};

// Two fp16 numbers of size 1 to 2, signs and mantissas from the seed: zeros would draw less power and run faster.
__device__ uint32_t random_halves(uint32_t seed) {
    seed = (seed ^ 0x9e3779b9u) * 0x85ebca6bu;
    seed = (seed ^ (seed >> 13)) * 0xc2b2ae35u;
    return ((seed ^ (seed >> 16)) & 0x83ff83ffu) | 0x3c003c00u;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) mma_sync(const __grid_constant__ Params p) {
    uint32_t a[4], b[kChains][2];
    float d[kChains][4] = {};
    for (int i = 0; i < 4; ++i) a[i] = random_halves(threadIdx.x * 4 + i);
    for (int c = 0; c < kChains; ++c) {
        for (int i = 0; i < 2; ++i) b[c][i] = random_halves(blockIdx.x * 7919 + threadIdx.x * 16 + c * 2 + i);
    }
    for (int64_t step = 0; step < p.steps; ++step) {
#pragma unroll
        for (int c = 0; c < kChains; ++c) flashcore::ptx::mma_m16n8k16<__half>(d[c], a, b[c][0], b[c][1]);
    }
    float sum = 0.f;
    for (int c = 0; c < kChains; ++c) {
        for (int i = 0; i < 4; ++i) sum += d[c][i];
    }
    p.out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
