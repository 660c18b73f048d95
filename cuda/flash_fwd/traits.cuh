// Tiles, warps and stages of every variant of the fused forward: one table.
//
// Limits: 255 registers a thread; 99 KB of shared memory a block and 100 KB an SM on sm_86 and sm_89 (163 and 164 on
// sm_80). A warp's registers hold O (m_tiles * HEAD_DIM / 2), S (m_tiles * keys / 2) and P (half of S), and Q if
// `q_in_registers` (m_tiles * HEAD_DIM / 4). What was tried is in cuda/NOTES.md.
#pragma once
#include "attention/block_range.cuh"

namespace flashcore {

enum class Schedule {
    kStraight,   // every warp for itself: S, P, O of one tile after the other
    kPipelined,  // S of the next tile is made between P and O of this one
    kPaired,     // two warps share 32 rows: S by rows, O by columns
};

struct Tiling {
    Schedule schedule;
    int row_warps;        // warps along the rows
    int m_tiles;          // tiles of 16 rows a warp
    int key_warps;        // warps along the keys: these meet once, at the end
    int keys;             // keys of a tile that a warp owns
    int slice;            // keys whose S and P are made together
    int stages;           // buffers of K and V: with 1, V travels during Q K^T and the next K during the rest
    bool q_in_registers;  // else Q is read from shared memory for every slice
    int blocks_an_sm;     // that the compiler leaves registers for
    bool split_loops;     // tiles that need a mask have loops of their own: faster, at the price of registers

    constexpr int block_q() const { return 16 * m_tiles * row_warps; }
    constexpr int block_kv() const { return keys * key_warps; }
    constexpr int threads() const { return 32 * row_warps * key_warps; }
};

enum class Variant {
    kFull,  // all keys
    kCausal,  // heads are the fast grid index and the longest rows come first, so that no long block starts late
    kWindow,   // a first and a last key
    kGeneral,  // any alignment, any head_dim, any window
    kScored,   // the same for scores with more terms than the product
    kSmall,  // all keys; few rows a block and two warps along the keys, for problems that do not fill the GPU
};

constexpr Band band(Variant variant) {
    switch (variant) {
        case Variant::kCausal:
            return Band::kCausal;
        case Variant::kWindow:
        case Variant::kGeneral:
        case Variant::kScored:
            return Band::kWindow;
        default:
            return Band::kAll;
    }
}

// How ptxas is held to few instructions for addresses in the loop over tiles; what pays differs with the registers that are
// left (cuda/NOTES.md, third round).

// Copies step back from tile to tile instead of multiplying.
constexpr bool steps_copies(int head_dim) { return head_dim == 128; }

// The addresses of fragments are not computed again for every tile.
constexpr bool keeps_addresses(int head_dim, Variant variant) {
    return head_dim == 128 ? variant == Variant::kFull || variant == Variant::kCausal
                           : head_dim == 64 && variant == Variant::kCausal;
}

// ARCH: of the PTX, 80 for sm_80: the SMs that run it differ in shared memory.
template <int HEAD_DIM, Variant VARIANT, int ARCH>
constexpr Tiling tiling() {
    constexpr Schedule straight = Schedule::kStraight, pipelined = Schedule::kPipelined,
                       paired = Schedule::kPaired;
    constexpr bool causal = VARIANT == Variant::kCausal, split = causal || VARIANT == Variant::kWindow;
    //                       rows m keyw keys slice st Qreg blocks split
    if (VARIANT == Variant::kSmall)  // 32 rows; two tiles of keys in flight fit 99 KB up to HEAD_DIM 128
        return {pipelined, 2, 1, 2, HEAD_DIM <= 64 ? 64 : 32, 32, 2, true, 1, false};
    if (VARIANT == Variant::kScored)  // one tile of rows a warp: the terms take registers
        return {straight, 4, 1, 1, 64, 32, 1, false, 2, false};
    if (VARIANT == Variant::kGeneral)  // as below, with room for the addresses of any layout
        return {straight, 4, HEAD_DIM <= 128 ? 2 : 1, 1, HEAD_DIM == 128 ? 32 : 64, 32, 1, false, 2, false};
    switch (HEAD_DIM) {
        // 24 KB; longer tiles cost more in masks than they save in barriers
        case 32:
            return {straight, 4, 2, 1, 64, 32, 2, true, 2, causal};
        // 48 KB, two blocks an SM on every arch; 96 keys: as fast at S 8192, 8 % slower at S 512
        case 64:
            return {straight, 4, 2, 1, 64, 32, 2, true, 2, true};
        // 72 KB: one stage would be 48, and is 6 % slower; no registers for Q
        case 96:
            return {straight, 4, 2, 1, 64, 32, 2, false, 2, split};
        // 96 KB: one block an SM of 100 KB, as one stage (64 KB) is, and two on sm_90; an A100 takes two blocks of one
        // stage. O alone is 128 registers, so slices differ by what spills
        case 128:
            // 64 keys would spill 4 to 20 bytes: a window has more limits, an A100 needs room for two blocks
            if (VARIANT == Variant::kWindow || (ARCH == 80 && causal))
                return {straight, 4, 2, 1, 32, 32, 2, false, 2, false};
            if (ARCH == 80) return {straight, 4, 2, 1, 64, 64, 1, false, 2, false};
            return {straight, 4, 2, 1, 64, 64, 2, false, 2, true};
        // 72 and 96 KB; one tile of rows a warp: O of two would be 192 or 256 registers
        case 192:
            if (VARIANT == Variant::kWindow) return {straight, 4, 1, 1, 64, 64, 1, false, 2, true};
            break;
        case 256:
            if (VARIANT == Variant::kWindow || ARCH == 80)  // paired spills 4 to 8 bytes on sm_80
                return {straight, 4, 1, 1, 64, 16, 1, false, 2, true};
    }
    // 57 and 73 KB: one block an SM on sm_86 and sm_89, two elsewhere; O and Q of a warp are 144 and 192
    // registers. 8 warps would halve the copies: slower, as all of them wait at one barrier
    return {paired, 4, 1, 1, 32, 32, 2, true, 2, false};
}

}  // namespace flashcore
