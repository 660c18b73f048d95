// A divisor known on the host, as the device divides by it: n / value = n * multiplier >> shift for 0 <= n < 2^31.
#pragma once
#include <cstdint>

namespace flashcore {

struct Divisor {
    uint64_t multiplier;  // below 2^32
    int32_t shift;
    int32_t value;
};

}  // namespace flashcore
