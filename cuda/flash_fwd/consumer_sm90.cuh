// A warpgroup that multiplies: S = Q @ K^T, P = softmax(S), O += P @ V for its 64 rows of one row block after the other.
//
// The tensor cores always have the next S to make while this warpgroup is at a softmax: S of a tile is issued before O of
// the tile before it, also where that was the last tile of another row block.
#pragma once
#include "attention/mask.cuh"
#include "attention/scores.cuh"
#include "attention/softmax.cuh"
#include "flash_fwd/epilogue_sm90.cuh"
#include "flash_fwd/row_blocks.cuh"
#include "flash_fwd/stages_sm90.cuh"
#include "ptx/named_barrier.cuh"
#include "ptx/wgmma.cuh"

namespace flashcore {

// Kernel: FlashFwdSm90.
template <typename Kernel>
struct ConsumerSm90 {
    using T = typename Kernel::T;
    using Shared = typename Kernel::Shared;
    using Block = typename Kernel::Block;
    static constexpr int HEAD_DIM = Kernel::HEAD_DIM, BLOCK_Q = Kernel::BLOCK_Q, BLOCK_KV = Kernel::BLOCK_KV;
    static constexpr bool kScored = Kernel::kScored;
    // What is made of the tile that a row block begins with, its last, where a warpgroup sees no keys after these: on a causal
    // diagonal, 64 rows to a warpgroup, that is every second time.
    static constexpr int kHalf = BLOCK_KV == 128 && Kernel::BAND == Band::kCausal ? 64 : BLOCK_KV;
    using ProductO = ptx::Wgmma<T, HEAD_DIM>;

    const FlashFwdTmaParams& params;
    const FlashFwdParams& p;
    const Shared& shared;
    const int warpgroup;
    Ring<Shared::kStages> ring;  // where the tile lies whose O is next
    int q_buffer = 0;            // where Q of the task lies
    bool o_begun = false;        // else O is yet to be written
    float S[1][BLOCK_KV / 8][4], O[1][HEAD_DIM / 8][4];
    uint32_t P[BLOCK_KV / 16][1][4];
    OnlineSoftmax<1> softmax;

    __device__ ConsumerSm90(const FlashFwdTmaParams& params, const Shared& shared, int warpgroup)
        : params(params), p(params.fwd), shared(shared), warpgroup(warpgroup) {}

    __device__ __forceinline__ void run() {
        if (warpgroup == Shared::kWarpgroups - 1) pass_turn();  // the first turn is warpgroup 0's
        bool pending = false;  // O of the last tile of the task before is still to come
        int n = 0;
        for (;; ++n) {
            q_buffer = n % Shared::kQBuffers;
            ptx::mbarrier_wait(shared.q_full(warpgroup, q_buffer), n / Shared::kQBuffers & 1);
            const Task task = shared.task(n);
            if (task.end < 0) break;
            const Block block(p, task);
            const BlockRange<BLOCK_KV> own = block.tiles(64 * warpgroup, 64);
            if (pending && own.end == task.end && own.end > 0) {
                begin<Before::kOtherRows>(block, own, shared.task(n - 1));
                give_back(shared.task_empty(n - 1));
            } else {
                if (pending) {
                    finish(shared.task(n - 1));
                    give_back(shared.task_empty(n - 1));
                }
                pending = false;
                for (int tile = task.end; tile > own.end; --tile) skip_tile();
                if (own.end == 0) {
                    give_back(shared.q_empty(warpgroup, q_buffer));
                    store_nothing(task);
                    give_back(shared.task_empty(n));
                    continue;
                }
                begin<Before::kNothing>(block, own, task);
            }
#pragma unroll 1
            for (int tile = own.end - 2; tile >= 0; --tile)
                step<Before::kSameRows, BLOCK_KV>(block, own, tile, task);
            pending = true;
        }
        if (pending) finish(shared.task(n - 1));
    }

  private:
    enum class Before { kNothing, kSameRows, kOtherRows };  // what O is to be made of beside S

    // This warp's first row in a row block.
    __device__ static int warp_row() { return threadIdx.x / 32 * 16; }

    // The first step of a row block.
    template <Before BEFORE>
    __device__ __forceinline__ void begin(const Block& block, const BlockRange<BLOCK_KV>& own,
                                          const Task& before) {
        const int tile = own.end - 1;
        if (kHalf == BLOCK_KV || own.keys <= tile * BLOCK_KV + kHalf)
            step<BEFORE, kHalf>(block, own, tile, before);
        else
            step<BEFORE, BLOCK_KV>(block, own, tile, before);
    }

    // S and P of a tile, of which only the first KEYS are seen, beside O of the tile before it, which is of the same rows or the
    // last one of the task `before`.
    template <Before BEFORE, int KEYS>
    __device__ __forceinline__ void step(const Block& block, const BlockRange<BLOCK_KV>& own, int tile,
                                         const Task& before) {
        const auto at = BEFORE == Before::kNothing ? ring : ring.next();
        ptx::mbarrier_wait(shared.k_full(at.stage), at.parity);
        wait_turn();
        auto& S = reinterpret_cast<float (&)[1][KEYS / 8][4]>(this->S);
        issue_scores(at.stage, S[0]);
        if (BEFORE != Before::kNothing) issue_output();
        pass_turn();
        ptx::wgmma_wait<BEFORE == Before::kNothing ? 0 : 1>();
        ptx::wgmma_pin(S[0]);
        give_back(shared.k_empty(at.stage));
        if (tile == 0) give_back(shared.q_empty(warpgroup, q_buffer));

        RowEnds ends;
        if (BEFORE == Before::kOtherRows) ends = RowEnds(p, before, warp_row(), softmax);
        if (BEFORE != Before::kSameRows) softmax = OnlineSoftmax<1>();
        if constexpr (kScored)
            Scores{params.terms, block.rows, p.scale_log2, block.place.batch, block.place.head}.finish(
                S, block.place.first_row + warp_row(), tile * BLOCK_KV);
        constexpr bool kMayEnd = BEFORE != Before::kSameRows || Kernel::BAND != Band::kAll;
        if (kMayEnd && (tile >= own.masked || (Kernel::BAND == Band::kWindow && tile < own.clear)))
            mask(S, block.limit, block.place.first_row + warp_row(), 16, tile * BLOCK_KV);
        if (BEFORE != Before::kNothing) output_done();
        if (BEFORE == Before::kOtherRows) store(before, ends);
        o_begun = BEFORE == Before::kSameRows;
        probabilities<BEFORE == Before::kSameRows, KEYS>(S);
        // and not a shorter product: ptxas serialises products that a branch chooses
#pragma unroll
        for (int j = KEYS / 16; j < BLOCK_KV / 16; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) P[j][0][e] = 0;
    }

    // P = exp2(scale * S - m): at once, if m is that of O which has BEGUN, and only searched for what is too large where that
    // shows in the sums. A search beside the product O, before P, made the worst scores 5 % faster and others 1 % slower.
    template <bool BEGUN, int KEYS>
    __device__ __forceinline__ void probabilities(const float (&S)[1][KEYS / 8][4]) {
        const float scale = kScored ? 1.f : p.scale_log2;
        const bool speculative = BEGUN && softmax.speculation == softmax.kGoing;
        if (speculative) {
            float sum[1][2] = {};
            softmax.template exponentials<T, 0, KEYS>(S, P, scale, sum);
            if (softmax.accept(sum)) return;
        }
        float peak[1][2], rescale[1][2];
        softmax.template search<0, KEYS>(S, peak);
        if (!BEGUN) {
#pragma unroll
            for (int h = 0; h < 2; ++h) softmax.move_origin(0, h, peak, scale);
        } else if (softmax.raise(peak, scale, rescale)) {
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 8; ++d)
#pragma unroll
                for (int e = 0; e < 4; ++e) O[0][d][e] *= rescale[0][e / 2];
        }
        softmax.template exponentials<T, 0, KEYS>(S, P, scale, softmax.l);
        softmax.consider_speculation(speculative);
    }

    __device__ __forceinline__ void finish(const Task& task) {
        issue_output();
        const RowEnds ends(p, task, warp_row(), softmax);
        output_done();
        store(task, ends);
    }

    // Rows that see no key.
    __device__ __forceinline__ void store_nothing(const Task& task) {
        softmax = OnlineSoftmax<1>();
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 8; ++d)
#pragma unroll
            for (int e = 0; e < 4; ++e) O[0][d][e] = 0.f;
        store(task, RowEnds(p, task, warp_row(), softmax));
    }

    __device__ __forceinline__ void store(const Task& task, const RowEnds& ends) const {
        store_rows<T>(p, task, warp_row(), O[0], ends, shared.output(threadIdx.x / 32));
    }

    // S = Q @ K^T of a tile's first keys                                     [64, 8 N_TILES]
    template <int N_TILES>
    __device__ __forceinline__ void issue_scores(int stage, float (&S)[N_TILES][4]) {
        const uint64_t Q = ptx::wgmma_descriptor(shared.q(warpgroup, q_buffer)),
                       K = ptx::wgmma_descriptor(shared.k(stage));
        ptx::wgmma_pin(S);
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < HEAD_DIM / 16; ++i)
            ptx::Wgmma<T, 8 * N_TILES>::ab(S, Q + ptx::wgmma_step(i / 4 * Shared::kQTileBytes + i % 4 * 32),
                                           K + ptx::wgmma_step(i / 4 * Shared::kTileBytes + i % 4 * 32),
                                           i > 0);
        ptx::wgmma_commit();
    }

    // O += P @ V                                                             [64, HEAD_DIM]
    __device__ __forceinline__ void issue_output() {
        ptx::mbarrier_wait(shared.v_full(ring.stage), ring.parity);
        const uint64_t V = ptx::wgmma_descriptor_transposed(shared.v(ring.stage), Shared::kTileBytes);
        ptx::wgmma_pin(O[0]);
        ptx::wgmma_fence();
#pragma unroll
        for (int j = 0; j < BLOCK_KV / 16; ++j)
            ProductO::rv(O[0], P[j][0], V + ptx::wgmma_step(j * 16 * 128), j > 0 || o_begun);
        ptx::wgmma_commit();
    }

    __device__ __forceinline__ void output_done() {
        ptx::wgmma_wait<0>();
        ptx::wgmma_pin(O[0]);
        give_back(shared.v_empty(ring.stage));
        ring = ring.next();
    }

    // Every warp arrives for itself.
    __device__ __forceinline__ void give_back(uint32_t empty) const {
        if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(empty);
        __syncwarp();  // products need whole warps
    }

    // Tiles that only other warpgroups need. They have to be full before they are given back: a buffer counts the arrivals
    // of one phase.
    __device__ __forceinline__ void skip_tile() {
        wait_turn();
        pass_turn();
        ptx::mbarrier_wait(shared.k_full(ring.stage), ring.parity);
        give_back(shared.k_empty(ring.stage));
        ptx::mbarrier_wait(shared.v_full(ring.stage), ring.parity);
        give_back(shared.v_empty(ring.stage));
        ring = ring.next();
    }

    // The warpgroups issue their products in turns, so that the softmax of one runs beside the products of another: one turn
    // for every tile of the row block. With more tiles in shared memory they get out of step by themselves.
    __device__ __forceinline__ void wait_turn() const {
        if (Kernel::kTiling.in_turns) ptx::named_barrier_sync(1 + warpgroup, 256);
    }
    __device__ __forceinline__ void pass_turn() const {
        if (Kernel::kTiling.in_turns)
            ptx::named_barrier_arrive(1 + (warpgroup + 1) % Shared::kWarpgroups, 256);
    }
};

}  // namespace flashcore
