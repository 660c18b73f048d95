// P = softmax(S) over the keys that each query may see, and lse = log sum exp(S)
//
// ROW_WARPS warps share a row. The first reading keeps in every lane an online maximum m and sum l of exp(S - m)
// (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018), which are then merged in a fixed order;
// the second reading writes P = exp(S - m) / l. A row with nothing to attend to gives P = 0 and lse = -inf.
#pragma once
#include "abi/kernel_info.h"
#include "abi/unfused_params.h"
#include "attention/matrix.cuh"
#include "ptx/exp2.cuh"

namespace flashcore {

// The softmax of part of a row: l = sum of exp(x - m), m the largest x.
struct SoftmaxState {
    float m = -INFINITY, l = 0.f;

    // Where nothing is above -inf, any finite origin makes exp(-inf - origin) = 0.
    __device__ static float origin(float m) { return m == -INFINITY ? 0.f : m; }
    __device__ static float exp_difference(float x, float m) {
        return ptx::exp2_approx((x - origin(m)) * kLog2E);
    }

    __device__ void merge(float other_m, float other_l) {
        const float m_new = fmaxf(m, other_m);
        l = l * exp_difference(m, m_new) + other_l * exp_difference(other_m, m_new);
        m = m_new;
    }
};

template <typename Element, int ROW_WARPS>
struct Softmax {
    using T = Element;
    using Params = UnfusedParams;
    static constexpr int kWarps = 8, kThreads = 32 * kWarps, kRowsABlock = kWarps / ROW_WARPS,
                         kRowThreads = 32 * ROW_WARPS;

    static constexpr int kBlocksAnSm = 6;  // that the compiler leaves registers for: 40

    struct Shared {
        float m[kWarps], l[kWarps];
    };

    static constexpr KernelInfo info(uint64_t abi_hash) {
        return {abi_hash, kThreads, sizeof(Shared), kRowsABlock, INT32_MAX, 1, sizeof(Params)};  // whole rows
    }

    __device__ static void run(const Params& p) {
        const int row_blocks = (p.seqlen_q + kRowsABlock - 1) / kRowsABlock;
        int index = blockIdx.x;  // ((batch, head), block of rows), the last the fastest
        const int row = index % row_blocks * kRowsABlock + threadIdx.x / kRowThreads;
        const int head = (index /= row_blocks) % p.num_heads, batch = index / p.num_heads;

        const Matrix<const float> S(p.s, batch, head);
        const Matrix<T> P(p.p, batch, head);
        const bool inside = row < p.seqlen_q;  // the others still meet at the barrier
        const int64_t last_key = int64_t(row) + p.seqlen_k - p.seqlen_q;
        const int visible = !inside    ? 0
                            : p.causal ? int(max(int64_t(0), min(last_key + 1, int64_t(p.seqlen_k))))
                                       : p.seqlen_k;
        const int keys = inside ? p.seqlen_k : 0;

        const SoftmaxState state = S.aligned && P.aligned ? softmax<8>(S, P, row, visible, keys)
                                                          : softmax<1>(S, P, row, visible, keys);
        if (inside && p.lse.data != nullptr && threadIdx.x % kRowThreads == 0)
            *Matrix<float>(p.lse, batch, head).at(row, 0) =
                state.l == 0.f ? -INFINITY : state.m + logf(state.l);
    }

  private:
    // N neighbouring keys a lane and step: 16-byte accesses where rows are aligned, else one key at a time, still coalesced.
    template <int N>
    __device__ static SoftmaxState softmax(const Matrix<const float>& S, const Matrix<T>& P, int row,
                                           int visible, int keys) {
        const int first = threadIdx.x % kRowThreads * N;
        SoftmaxState state;
        for (int key = first; key < visible; key += kRowThreads * N) {
            alignas(16) float x[N];
            read<N>(x, S, row, key, visible);
            float m = state.m;
#pragma unroll
            for (int e = 0; e < N; ++e) m = fmaxf(m, x[e]);
            float l = 0.f;
#pragma unroll
            for (int e = 0; e < N; ++e) l += SoftmaxState::exp_difference(x[e], m);
            state.merge(m, l);
        }
        merge_row(state);

        // P = exp2(S log2 e - m log2 e) / l
        const float inverse = state.l == 0.f ? 0.f : 1.f / state.l;
        for (int key = first; key < keys; key += kRowThreads * N) {
            alignas(16) float x[N];
            read<N>(x, S, row, key, visible);
#pragma unroll
            for (int e = 0; e < N; ++e) x[e] = SoftmaxState::exp_difference(x[e], state.m) * inverse;
            if (key + N <= keys) {
                store(P.at(row, key), x);
            } else {
#pragma unroll
                for (int e = 0; e < N; ++e)
                    if (key + e < keys) *P.at(row, key + e) = from_float<T>(x[e]);
            }
        }
        return state;
    }

    // x[e] = S[row, key + e], -inf where it is not visible and without reading it there.
    template <int N>
    __device__ static void read(float (&x)[N], const Matrix<const float>& S, int row, int key, int visible) {
        if (key + N <= visible) {
            if constexpr (N == 1) {
                x[0] = *S.at(row, key);
            } else {
#pragma unroll
                for (int e = 0; e < N; e += 4)
                    reinterpret_cast<float4&>(x[e]) = *reinterpret_cast<const float4*>(S.at(row, key + e));
            }
        } else {
#pragma unroll
            for (int e = 0; e < N; ++e) x[e] = key + e < visible ? *S.at(row, key + e) : -INFINITY;
        }
    }

    // Merges the states of the kRowThreads threads of a row, in the same order on every run; all of them get the result.
    __device__ static void merge_row(SoftmaxState& state) {
#pragma unroll
        for (int lanes = 16; lanes > 0; lanes /= 2)
            state.merge(__shfl_xor_sync(0xffffffffu, state.m, lanes),
                        __shfl_xor_sync(0xffffffffu, state.l, lanes));
        if constexpr (ROW_WARPS > 1) {
            Shared& smem = ptx::dynamic_shared_memory<Shared>();
            if (threadIdx.x % 32 == 0) {
                smem.m[threadIdx.x / 32] = state.m;
                smem.l[threadIdx.x / 32] = state.l;
            }
            __syncthreads();  // the state of every warp is in shared memory
            const int first_warp = threadIdx.x / kRowThreads * ROW_WARPS;
            state = SoftmaxState{};
            for (int w = 0; w < ROW_WARPS; ++w) state.merge(smem.m[first_warp + w], smem.l[first_warp + w]);
        }
    }
};

}  // namespace flashcore
