// Elements of tensors in CPU memory as numbers.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

#include "tensors.h"

namespace tensorwright {

// 8-bit floats are decoded from their bits.
double ElementOf(const DLTensor& tensor, int64_t index);

// Floats are rounded to nearest, ties to even, those of at most 32 bits through float32; other types require
// representable integers.
void StoreElement(const ffi::Tensor& tensor, int64_t index, double value);

}  // namespace tensorwright
