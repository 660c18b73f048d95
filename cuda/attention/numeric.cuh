// Element types: conversion from float, and stores of several at once.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ptx/st_global.cuh"

namespace flashcore {

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
    return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// Two neighbours in one register, the first in the low half.
template <typename T>
__device__ inline uint32_t pack(float first, float second);
template <>
__device__ inline uint32_t pack<__half>(float first, float second) {
    const __half2 pair = __floats2half2_rn(first, second);
    return reinterpret_cast<const uint32_t&>(pair);
}
template <>
__device__ inline uint32_t pack<__nv_bfloat16>(float first, float second) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const uint32_t&>(pair);
}

// Two packed elements to memory, in one access where their address allows it.
template <typename T>
__device__ inline void store_pair(T* at, uint32_t pair, bool aligned) {
    if (aligned) {
        *reinterpret_cast<uint32_t*>(at) = pair;
    } else {
        reinterpret_cast<uint16_t*>(at)[0] = uint16_t(pair);
        reinterpret_cast<uint16_t*>(at)[1] = uint16_t(pair >> 16);
    }
}

// N neighbours with one instruction.
template <typename T, int N>
__device__ inline void store(T* target, const float (&x)[N]) {
    if constexpr (N == 1) {
        *target = from_float<T>(x[0]);
    } else if constexpr (sizeof(T) == 4) {
        static_assert(N == 4);
        ptx::st_global_v4(target, __float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                          __float_as_uint(x[3]));
    } else if constexpr (N == 4) {
        ptx::st_global_v2(target, pack<T>(x[0], x[1]), pack<T>(x[2], x[3]));
    } else {
        static_assert(N == 8);
        ptx::st_global_v4(target, pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]),
                          pack<T>(x[6], x[7]));
    }
}

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

}  // namespace flashcore
