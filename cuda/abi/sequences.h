// The lengths of a batch's sequences: the same for all, or read from memory.
// flashcore_drv/abi.py mirrors this struct; the build compares the two field by field.
#pragma once
#include <cstdint>

namespace flashcore {

struct Sequences {
    int32_t seqlen_q;  // of the longest sequence
    int32_t seqlen_k;
    int32_t total_q;  // rows of Q where sequences are packed
    int32_t total_k;
    const int32_t* cu_seqlens_q;  // [batch + 1] first rows of packed sequences in Q and O; null: not packed
    const int32_t* cu_seqlens_k;  // [batch + 1] the same in K and V
    const int32_t* seqused_k;     // [batch] keys of each sequence that count; null: all
};

}  // namespace flashcore
