// Which tiles of keys a block of query rows needs, and which of them contain keys that some of its rows may not see.
#pragma once

namespace flashcore {

// Query i sees the keys j <= i + diagonal; without DIAGONAL it sees all.
template <bool DIAGONAL>
struct KeyLimit {
    int seqlen_k, diagonal;

    // One past the last key that a row sees; 0 or less where it sees none.
    __device__ int of_row(int row) const { return DIAGONAL ? min(seqlen_k, row + diagonal + 1) : seqlen_k; }
};

// Tiles [0, end) are needed; those from `masked` on need a mask.
template <int BLOCK_KV>
struct BlockRange {
    int end, masked;

    template <bool DIAGONAL>
    __device__ BlockRange(const KeyLimit<DIAGONAL>& limit, int first_row, int last_row)
        : end((max(0, limit.of_row(last_row)) + BLOCK_KV - 1) / BLOCK_KV),
          masked(max(0, limit.of_row(first_row)) / BLOCK_KV) {}
};

}  // namespace flashcore
