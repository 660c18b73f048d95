// A CUtensorMap: a tensor in global memory and the box of it that one copy moves, encoded by the driver.
// flashcore_drv/abi.py mirrors this struct; the build compares the two field by field.
#pragma once

namespace flashcore {

struct TensorMap {
    alignas(64) unsigned char opaque[128];
};

}  // namespace flashcore
