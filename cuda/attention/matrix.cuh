// The [rows, cols] matrix of one batch and head in global memory, and its tiles in shared memory.
#pragma once
#include "abi/tensor.h"
#include "attention/numeric.cuh"
#include "ptx/compute_now.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/shared_memory.cuh"

namespace flashcore {

template <typename T>
struct Matrix {
    T* data;
    int64_t row_stride;
    bool aligned;  // every row starts on 16 bytes; the same for all threads

    // From row `first_row` on, where the rows before it are other sequences'. Unsigned indices, as none is below 0: their
    // product with a stride takes half of the instructions.
    __device__ Matrix(const Tensor& t, int batch, int head, int first_row = 0)
        : data(static_cast<T*>(t.data) + unsigned(batch) * t.batch_stride + unsigned(head) * t.head_stride +
               unsigned(first_row) * t.row_stride),
          row_stride(t.row_stride) {
        const uint64_t strides = (t.batch_stride | t.head_stride | t.row_stride) * sizeof(T);
        aligned = (reinterpret_cast<uint64_t>(t.data) | strides) % 16 == 0;
    }

    // The compiler would put off what is needed at the end only.
    __device__ void compute_now() {
        ptx::compute_now(data);
        ptx::compute_now(row_stride);
    }

    __device__ T* at(int row, int col) const { return data + row * row_stride + col; }
};

// A tile in shared memory. Padding a row by 16 bytes shifts the banks from row to row, so that the eight rows
// that ldmatrix reads at a time (16 bytes each) cover all 32 banks once.
template <typename T, int ROWS, int COLS>
struct alignas(128) Tile {
    static constexpr int kPitch = COLS + 16 / sizeof(T);
    T at[ROWS][kPitch];
};

// tile[r, c] = matrix[first_row + r, first_col + c], zero past (rows, cols). Nothing past (rows, cols) is read.
// Asynchronous where the rows are aligned: complete after cp_async_commit, cp_async_wait and a barrier.
template <int THREADS, typename T, int ROWS, int COLS>
__device__ void load_tile(Tile<T, ROWS, COLS>& tile, const Matrix<T>& matrix, int first_row, int first_col,
                          int rows, int cols) {
    constexpr int kChunk = 16 / sizeof(T), kChunksARow = COLS / kChunk;
    static_assert(ROWS * kChunksARow % THREADS == 0);
#pragma unroll
    for (int i = 0; i < ROWS * kChunksARow / THREADS; ++i) {
        const int chunk = i * THREADS + threadIdx.x;
        const int r = chunk / kChunksARow, c = chunk % kChunksARow * kChunk;
        const int row = first_row + r, col = first_col + c;
        const int valid = row < rows ? max(0, min(kChunk, cols - col)) : 0;
        const T* source = valid > 0 ? matrix.at(row, col) : matrix.data;
        if (matrix.aligned) {
            ptx::cp_async_16(ptx::shared_address(&tile.at[r][c]), source, valid * int(sizeof(T)));
        } else {
            for (int e = 0; e < kChunk; ++e) tile.at[r][c + e] = e < valid ? source[e] : from_float<T>(0.f);
        }
    }
}

// matrix[first_row + r, first_col + c] = tile[r, c] for what lies inside (rows, cols), N neighbours in one store: 4 of
// them, which a thread reads as 16 bytes without bank conflicts, where rows are aligned, else 1.
template <int THREADS, int N, typename T, int ROWS, int COLS, int PITCH>
__device__ void store_tile(const Matrix<T>& matrix, const float (&tile)[ROWS][PITCH], int first_row,
                           int first_col, int rows, int cols) {
    constexpr int kChunksARow = COLS / N;
    for (int i = threadIdx.x; i < ROWS * kChunksARow; i += THREADS) {
        const int r = i / kChunksARow, c = i % kChunksARow * N;
        const int row = first_row + r, col = first_col + c;
        if (row >= rows || col >= cols) continue;
        float x[N];
#pragma unroll
        for (int e = 0; e < N; ++e) x[e] = tile[r][c + e];
        if (col + N <= cols) {
            store(matrix.at(row, col), x);
        } else {
#pragma unroll
            for (int e = 0; e < N; ++e)
                if (col + e < cols) *matrix.at(row, col + e) = from_float<T>(x[e]);
        }
    }
}

}  // namespace flashcore
