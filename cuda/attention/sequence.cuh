// The rows of one sequence of the batch in Q and K.
#pragma once
#include "abi/sequences.h"

namespace flashcore {

// Whatever the arrays of lengths hold, the rows lie in [0, total), and are no more than the longest sequence has.
struct Sequence {
    int first_q = 0, first_k = 0, seqlen_q, seqlen_k;

    // Where all sequences have the same length.
    __device__ explicit Sequence(const Sequences& all) : seqlen_q(all.seqlen_q), seqlen_k(all.seqlen_k) {}

    __device__ Sequence(int first_q, int first_k, int seqlen_q, int seqlen_k)
        : first_q(first_q), first_k(first_k), seqlen_q(seqlen_q), seqlen_k(seqlen_k) {}

    __device__ Sequence(const Sequences& all, int batch) : Sequence(all) {
        if (all.cu_seqlens_q != nullptr) {
            first_q = clamp(all.cu_seqlens_q[batch], 0, all.total_q);
            first_k = clamp(all.cu_seqlens_k[batch], 0, all.total_k);
            seqlen_q = min(clamp(all.cu_seqlens_q[batch + 1], first_q, all.total_q) - first_q, seqlen_q);
            seqlen_k = min(clamp(all.cu_seqlens_k[batch + 1], first_k, all.total_k) - first_k, seqlen_k);
        }
        if (all.seqused_k != nullptr) seqlen_k = clamp(all.seqused_k[batch], 0, seqlen_k);
    }

    // The same queries without the first n keys. What is counted from the diagonal stays where it is.
    __device__ Sequence without_keys(int n) const {
        Sequence rest = *this;
        rest.first_k += n;
        rest.seqlen_k -= n;
        return rest;
    }

    __device__ static int clamp(int x, int least, int most) { return min(max(x, least), most); }
};

}  // namespace flashcore
