// Tiles, warpgroups and stages of the fused forward on sm_90a: one table.
//
// A warpgroup that multiplies owns 64 rows of Q. Its registers hold O (HEAD_DIM / 2 a thread), S (keys / 2) and P (half of
// S). Shared memory holds Q, `stages` tiles of K and of V, and 2 KB a warp for O on its way out.
#pragma once
#include "flash_fwd/traits.cuh"

namespace flashcore {

struct TilingSm90 {
    int warpgroups;  // that multiply; one more loads
    int keys;        // of a tile: an N of ptx/wgmma.cuh
    int stages;      // tiles of K, and of V, in shared memory
    int q_buffers;   // of Q: with two, that of the next row block is there before the last tile of this one
    bool in_turns;   // whether the warpgroups issue their products one after the other

    constexpr int block_q() const { return 64 * warpgroups; }
    constexpr int threads() const { return 128 * (warpgroups + 1); }
    // A block gets 65536 / threads() registers a thread, rounded down to 8: what the loading warpgroup can do without goes to
    // the others. One more than there are, and a warpgroup waits for it for ever.
    constexpr int loading_registers() const { return warpgroups == 2 ? 40 : 32; }
    constexpr int multiplying_registers() const {
        return warpgroups == 2 ? 232 : warpgroups == 3 ? 160 : 112;
    }
    constexpr bool registers_suffice() const {
        return warpgroups * multiplying_registers() + loading_registers() <=
               (warpgroups + 1) * (65536 / threads() / 8 * 8);
    }
};

// What a tiling is best for. Many warpgroups hide more of each other's waits, and share K and V; few rows waste less of the
// last SMs.
enum class Work {
    kLong,   // many rows, many keys
    kShort,  // many rows, few keys
    kFew,    // not more rows than the SMs take at once
};

template <int HEAD_DIM, Variant VARIANT, Work WORK>
constexpr TilingSm90 tiling_sm90() {
    constexpr bool scored = VARIANT == Variant::kScored;
    switch (HEAD_DIM) {
        case 64:
            if (scored || WORK == Work::kFew) return {2, 128, 3, 1, true};
            // of short sequences 192 rows are 12 % too many, and S of 128 keys waits for all of them
            if (WORK == Work::kShort || VARIANT != Variant::kFull) return {4, 64, 6, 2, false};
            return {3, 128, 2, 1, true};
        case 96:
            return scored ? TilingSm90{2, 64, 2, 1, true} : TilingSm90{3, 96, 3, 1, false};
        case 128:
            if (scored) return {2, 64, 2, 1, true};
            return WORK == Work::kLong && VARIANT != Variant::kWindow ? TilingSm90{3, 80, 3, 1, false}
                                                                      : TilingSm90{2, 128, 2, 1, true};
        case 192:
            return scored ? TilingSm90{2, 64, 2, 1, true} : TilingSm90{2, 96, 2, 1, true};
        default:
            return {2, 64, 2, 1, true};
    }
}

}  // namespace flashcore
