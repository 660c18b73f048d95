// Two results over disjoint keys become the one over all of them. For each row, with weights relative to the larger lse:
//   w = exp(lse - max(lse_a, lse_b)),  out = (w_a out_a + w_b out_b) / (w_a + w_b),  lse = max + log(w_a + w_b)
// A part whose lse is -inf counts for nothing; if both are, out = 0 and lse = -inf.
#pragma once
#include "abi/kernel_info.h"
#include "abi/merge_params.h"
#include "attention/bias.cuh"
#include "attention/divide.cuh"
#include "attention/matrix.cuh"

namespace flashcore {

template <typename Element, int ROWS>
struct Merge {
    using T = Element;
    using Params = MergeParams;
    static constexpr int kRowThreads = 8, kThreads = ROWS * kRowThreads, kBlocksAnSm = 4;
    static constexpr int kChunk = 16 / sizeof(T);

    static constexpr KernelInfo info(uint64_t abi_hash) {
        return {abi_hash, kThreads, 0, ROWS, 256, 1, sizeof(Params)};
    }

    __device__ static void run(const Params& p) {
        const int index = blockIdx.x * ROWS + threadIdx.x / kRowThreads;
        if (index >= p.rows) return;
        const int batch_head = divide(index, p.seqlen_q), row = index - batch_head * p.seqlen_q.value;
        const int batch = divide(batch_head, p.num_heads), head = batch_head - batch * p.num_heads.value;

        const float a = *Matrix<float>(p.lse_a, batch, head).at(row, 0),
                    b = *Matrix<float>(p.lse_b, batch, head).at(row, 0);
        const bool empty = a == -INFINITY && b == -INFINITY;
        const float origin = empty ? 0.f : fmaxf(a, b);
        const float w_a = expf(a - origin), w_b = expf(b - origin);
        const float inverse = empty ? 0.f : 1.f / (w_a + w_b);

        const Matrix<T> out_a(p.out_a, batch, head), out_b(p.out_b, batch, head), out(p.out, batch, head);
        const bool aligned = out_a.aligned && out_b.aligned && out.aligned;
        const int lane = threadIdx.x % kRowThreads;
        for (int col = lane * kChunk; col < p.head_dim_v; col += kRowThreads * kChunk) {
            Chunk x = load(out_a.at(row, col), aligned), y = load(out_b.at(row, col), aligned);
            float sum[kChunk];
#pragma unroll
            for (int e = 0; e < kChunk; ++e)
                sum[e] = (weighted(w_a, x.at[e]) + weighted(w_b, y.at[e])) * inverse;
            if (aligned) {
                store(out.at(row, col), sum);
            } else {
#pragma unroll
                for (int e = 0; e < kChunk; ++e) *out.at(row, col + e) = from_float<T>(sum[e]);
            }
        }
        if (lane == 0) *Matrix<float>(p.lse, batch, head).at(row, 0) = origin + logf(w_a + w_b);
    }

  private:
    struct alignas(16) Chunk {
        T at[kChunk];
    };

    // What a part without weight holds must not matter, not even NaN.
    __device__ static float weighted(float w, T x) { return w == 0.f ? 0.f : w * to_float(x); }

    __device__ static Chunk load(const T* from, bool aligned) {
        if (aligned) return *reinterpret_cast<const Chunk*>(from);
        Chunk x;
#pragma unroll
        for (int e = 0; e < kChunk; ++e) x.at[e] = from[e];
        return x;
    }
};

}  // namespace flashcore
