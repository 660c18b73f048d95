// What a kernel tells the host about itself. The host reads it from the loaded module and computes none of it again.
// flashcore_drv/abi.py mirrors this struct; the build compares the two field by field.
#pragma once
#include <cstdint>

namespace flashcore {

struct KernelInfo {
    uint64_t
        abi_hash;     // hash of every struct in cuda/abi: the host refuses a cubin that was built from others
    int32_t threads;  // threads a block
    int32_t shared_bytes;   // dynamic shared memory a block
    int32_t tile_rows;      // rows of the result that one block makes
    int32_t tile_cols;      // columns of the result that one block makes
    int32_t tiles_a_block;  // consecutive column tiles that one block makes, one after the other
    int32_t params_bytes;   // sizeof of the parameter struct
    int32_t box_rows_q;     // rows of Q that one copy by a tensor map moves; 0: no tensor maps
    int32_t box_rows_kv;    // of K and V
    int32_t blocks_an_sm;   // of a persistent grid; 0: the grid has a block for each tile
};

}  // namespace flashcore
