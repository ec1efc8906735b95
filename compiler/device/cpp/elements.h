// Elements of tensors in the processor's memory as numbers.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

#include "tensors.h"

namespace tensorwright {

// 8-bit floats are taken by their bits.
double ElementOf(const DLTensor& tensor, int64_t index);

// Floats are rounded to nearest, ties to even, those of 32 bits and fewer by way of float32; the rest must be whole numbers
// that the type holds.
void StoreElement(const ffi::Tensor& tensor, int64_t index, double value);

}  // namespace tensorwright
