// Tiles of 16-bit elements in shared memory, laid out for ldmatrix, and their way there from global memory.
//
// A row is HEAD_DIM / 8 chunks of 16 bytes. ldmatrix reads one chunk of eight rows at a time, which without more would
// lie in the same banks: so the chunks of row r are permuted, chunk c is stored at chunk c ^ swizzle(r).
#pragma once
#include <type_traits>

#include "attention/matrix.cuh"
#include "ptx/cp_async.cuh"

namespace flashcore {

template <int HEAD_DIM>
struct Swizzle {
    static constexpr int kChunks = HEAD_DIM / 8, kPitch = HEAD_DIM * 2;
    // Chunks that are permuted among each other: 128 bytes, or 64 where a row is an odd number of these (then
    // neighbouring rows are in different halves of the banks already).
    static constexpr int kSpan = kChunks % 8 == 0 ? 8 : 4;

    __device__ static int of_row(int row) { return kSpan == 8 ? row & 7 : row >> 1 & 3; }
    __device__ static uint32_t offset(int row, int chunk) {
        return row * kPitch + chunk / kSpan * kSpan * 16 + ((chunk % kSpan) ^ of_row(row)) * 16;
    }
};

// The addresses of one lane for ldmatrix.x4 on a tile: 16 rows and 2 chunks (16 columns) at a time.
template <int HEAD_DIM>
struct FragmentAddress {
    using Layout = Swizzle<HEAD_DIM>;
    uint32_t base;

    // `row` and `chunk` (0 or 1) are the lane's in the first fragment; a tile starts at a multiple of 128.
    __device__ FragmentAddress(uint32_t tile, int row, int chunk) : base(tile + Layout::offset(row, chunk)) {}

    // The fragment 16 * rows16 rows down and 2 * step chunks to the right. A permutation is an XOR: one with the step is enough.
    __device__ uint32_t at(int rows16, int step, uint32_t tile_offset = 0) const {
        constexpr int kSpan = Layout::kSpan;
        return ((base + tile_offset) ^ (2 * step % kSpan * 16)) + 2 * step / kSpan * kSpan * 16 +
               rows16 * 16 * Layout::kPitch;
    }
};

// Copies tiles of ROWS rows of a matrix, THREADS threads together.
template <typename T, int ROWS, int HEAD_DIM, int THREADS>
struct TileLoader {
    using Layout = Swizzle<HEAD_DIM>;
    static constexpr int kSpan = Layout::kSpan, kRowStep = THREADS / kSpan, kSteps = ROWS / kRowStep;
    static_assert(ROWS % kRowStep == 0 && kRowStep % 8 == 0,
                  "a thread copies the same chunks of rows 8 n apart");

    const Matrix<T>& matrix;
    uint32_t
        offset;  // of this thread's first chunk, in bytes: the matrix is the same for all threads, and stays uniform
    uint32_t target;
    int row;
    const char* at;  // this thread's first chunk of the tile that was copied last

    __device__ TileLoader(const Matrix<T>& matrix, uint32_t tile, unsigned thread, int /* head_dim */)
        : matrix(matrix),
          offset((thread / kSpan * uint32_t(matrix.row_stride) + thread % kSpan * 8) * sizeof(T)),
          target(tile + Layout::offset(thread / kSpan, thread % kSpan)),
          row(thread / kSpan) {}

    // Rows [first_row, first_row + ROWS), all of which exist, all HEAD_DIM columns.
    __device__ void load(int first_row, uint32_t tile_offset) {
        begin(first_row);
        copy<false>(tile_offset, [](int) {});
    }

    // The same for the ROWS rows before those that were copied last: two registers more, a product less.
    __device__ void load_previous(uint32_t tile_offset) {
        at -= ROWS * sizeof(T) * matrix.row_stride;
        copy<false>(tile_offset, [](int) {});
    }

    // As load(), where rows from `rows` on are zero and not read: a copy of 0 bytes does not touch its address. FOLDED: the
    // order in shared memory is that of flash_fwd's folded rows, 16 from the beginning, 16 from the end and so on.
    template <bool FOLDED = false>
    __device__ void load_tail(int first_row, uint32_t tile_offset, int rows) {
        begin(first_row);
        copy<FOLDED>(tile_offset, [&](int step) { return first_row + row < rows - step ? 16 : 0; });
    }

  private:
    __device__ void begin(int first_row) {
        at = reinterpret_cast<const char*>(matrix.data + unsigned(first_row) * matrix.row_stride) + offset;
    }

    // bytes(i): of each 16 of this thread's row i rows below its first one; nothing: all
    template <bool FOLDED, typename Bytes>
    __device__ __forceinline__ void copy(uint32_t tile_offset, const Bytes& bytes) const {
        static_assert(!FOLDED || kRowStep == 16);
        const char* from = at;
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
            const int to = !FOLDED ? i : 2 * i < kSteps ? 2 * i : 2 * (kSteps - i) - 1;
#pragma unroll
            for (int g = 0; g < Layout::kChunks / kSpan; ++g) {
                const uint32_t into = target + tile_offset + to * kRowStep * Layout::kPitch + g * kSpan * 16;
                if constexpr (std::is_void_v<decltype(bytes(0))>)
                    ptx::cp_async_16(into, from + g * kSpan * 16);
                else
                    ptx::cp_async_16(into, from + g * kSpan * 16, bytes(i * kRowStep));
            }
            from += kRowStep * sizeof(T) * matrix.row_stride;
        }
    }
};

// The same for matrices of any alignment and of fewer columns than HEAD_DIM: the columns from head_dim on are zero and
// not read. Where rows do not start on 16 bytes, element by element.
template <typename T, int ROWS, int HEAD_DIM, int THREADS>
struct AnyTileLoader {
    using Layout = Swizzle<HEAD_DIM>;
    static constexpr int kChunks = Layout::kChunks;
    static constexpr int kAtOnce = HEAD_DIM == 128 ? 2 : 4;  // four would spill where O has most registers
    static_assert(ROWS * kChunks % THREADS == 0);

    const Matrix<T> matrix;
    uint32_t tile;
    int thread, head_dim, at;  // at: the first row of the tile that was copied last

    __device__ AnyTileLoader(const Matrix<T>& matrix, uint32_t tile, unsigned thread, int head_dim)
        : matrix(matrix), tile(tile), thread(thread), head_dim(head_dim) {}

    __device__ void load(int first_row, uint32_t tile_offset) {
        load_tail(first_row, tile_offset, INT32_MAX);
    }

    __device__ void load_previous(uint32_t tile_offset) { load(at - ROWS, tile_offset); }

    template <bool FOLDED = false>
    __device__ void load_tail(int first_row, uint32_t tile_offset, int rows) {
        static_assert(!FOLDED);
        at = first_row;
#pragma unroll kAtOnce
        for (int i = 0; i < ROWS * kChunks / THREADS; ++i) {
            const int r = (i * THREADS + thread) / kChunks, chunk = (i * THREADS + thread) % kChunks;
            const bool valid = first_row + r < rows && chunk * 8 < head_dim;
            const T* const from = valid ? matrix.at(first_row + r, chunk * 8) : matrix.data;
            const uint32_t target = tile + tile_offset + Layout::offset(r, chunk);
            if (matrix.aligned) {
                ptx::cp_async_16(target, from, valid ? 16 : 0);
            } else {
                uint32_t pairs[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) pairs[e] = valid ? load_pair(from + 2 * e) : 0;
                ptx::store_shared(target, pairs);
            }
        }
    }

    __device__ static uint32_t load_pair(const T* at) {
        return uint32_t(reinterpret_cast<const uint16_t*>(at)[0]) |
               uint32_t(reinterpret_cast<const uint16_t*>(at)[1]) << 16;
    }
};

}  // namespace flashcore
