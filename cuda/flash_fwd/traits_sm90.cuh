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

    constexpr int block_q() const { return 64 * warpgroups; }
    constexpr int threads() const { return 128 * (warpgroups + 1); }
    // A block gets 65536 / threads() registers a thread, rounded down to 8: what the loading warpgroup can do without goes to
    // the others. One more than there are, and a warpgroup waits for it for ever.
    constexpr int loading_registers() const { return warpgroups == 2 ? 40 : 32; }
    constexpr int multiplying_registers() const { return warpgroups == 2 ? 232 : 160; }
    constexpr bool registers_suffice() const {
        return warpgroups * multiplying_registers() + loading_registers() <=
               (warpgroups + 1) * (65536 / threads() / 8 * 8);
    }
};

template <int HEAD_DIM, Variant VARIANT>
constexpr TilingSm90 tiling_sm90() {
    constexpr bool scored = VARIANT == Variant::kScored;
    switch (HEAD_DIM) {
        case 64:
            return scored ? TilingSm90{2, 128, 2} : TilingSm90{3, 128, 2};
        case 96:
            return scored ? TilingSm90{2, 64, 2} : TilingSm90{3, 96, 2};
        case 128:
            return scored ? TilingSm90{2, 64, 2} : TilingSm90{2, 128, 2};
        case 192:
            return scored ? TilingSm90{2, 64, 2} : TilingSm90{2, 96, 2};
        default:
            return {2, 64, 2};
    }
}

// HEAD_DIM 64, causal, short sequences: of 192 rows they waste more than the third warpgroup gains (+ 15 % at S 1024,
// - 13 % at S 8192).
constexpr TilingSm90 kShortTilingSm90 = {2, 128, 2};

}  // namespace flashcore
