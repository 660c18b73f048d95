// Which tiles of keys a block of query rows needs, and which of them contain keys that some of its rows may not see.
#pragma once
#include "attention/sequence.cuh"

namespace flashcore {

// Which keys there are for a query i, counted from its diagonal i + seqlen_k - seqlen_q.
enum class Band {
    kAll,
    kCausal,  // keys up to the diagonal
    kWindow,  // keys from the diagonal - window_left to the diagonal + window_right
};

template <Band BAND>
struct KeyLimit {
    static constexpr int kFar = (1 << 30) - 1;  // as far as the first and the last key can be apart

    int seqlen_k, first, last;  // query i sees keys from i + first to i + last

    __device__ KeyLimit(const Sequence& rows, int window_left, int window_right) : seqlen_k(rows.seqlen_k) {
        const int diagonal = rows.seqlen_k - rows.seqlen_q;
        first = max(diagonal - window_left, -kFar);
        last = BAND == Band::kCausal ? diagonal : min(diagonal + window_right, kFar);
    }

    // A row below seqlen_q sees the keys [begin, end): none where end <= begin; both may be below 0.
    __device__ int begin(int row) const { return BAND == Band::kWindow ? row + first : 0; }
    __device__ int end(int row) const {
        if (BAND == Band::kAll) return seqlen_k;
        return BAND == Band::kCausal ? row + last + 1 : min(seqlen_k, row + last + 1);
    }
};

// Tiles [0, end) are needed, of the last one the keys below `keys`; those of [clear, masked) need no mask.
template <int BLOCK_KV>
struct BlockRange {
    int keys, end, clear, masked;

    template <Band BAND>
    __device__ BlockRange(const KeyLimit<BAND>& limit, int first_row, int last_row)
        : keys(max(0, limit.end(last_row))),
          end((keys + BLOCK_KV - 1) / BLOCK_KV),
          clear((max(0, limit.begin(last_row)) + BLOCK_KV - 1) / BLOCK_KV),
          masked(max(0, limit.end(first_row)) / BLOCK_KV) {}

    // Keys before the first needed tile: whole tiles, wherever a block's rows begin.
    template <Band BAND>
    __device__ static int unseen(const KeyLimit<BAND>& limit, int first_row) {
        return max(0, limit.begin(first_row)) / BLOCK_KV * BLOCK_KV;
    }
};

}  // namespace flashcore
