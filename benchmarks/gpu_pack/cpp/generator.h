// Counter-based random numbers, bit for bit those of generator.py.
#pragma once

#include <cstdint>
#include <vector>

#include "checked_json.h"
#include "tensors.h"

namespace tensorwright::pack {

constexpr int64_t kMaxSeed = int64_t{1} << 48;

uint64_t Bits(uint64_t seed, uint64_t position);

// A list of sizes. Throws Error.
std::vector<int64_t> Sizes(const JsonValue& list);

// Places among `size` elements: all of them where they are at most `count`, else `count` drawn ones.
std::vector<int64_t> Positions(uint64_t seed, int64_t count, int64_t size);

// A tensor as a pack describes it: {"dtype", "shape", "make": {"kind": ...}}; `stored` is what the kind "stored" points
// into. Throws Error for a description that is not understood.
ffi::Tensor MakeTensor(const JsonValue& description, Span stored);

}  // namespace tensorwright::pack
