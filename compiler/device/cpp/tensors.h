// Tensors and safetensors blobs.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "file.h"
#include "manifest.h"

namespace tensorwright {

namespace ffi = tvm::ffi;

struct NamedTensor {
  std::string name;
  ffi::Tensor tensor;
};

// "[2, 3]"
std::string ShapeText(const int64_t* shape, size_t rank);

// Bytes of a tensor; types smaller than a byte use one byte per element. Throws Error for a shape with a negative size
// or more elements than any memory.
size_t TensorBytes(const int64_t* shape, size_t rank, DLDataType dtype);
size_t TensorBytes(const DLTensor& tensor);

// True if all bytes are 0 or 1, as generated code assumes for booleans.
bool AreTruthValues(const uint8_t* bytes, size_t count);

// A tensor with its own memory, 64-byte aligned as generated code requires. Throws Error as TensorBytes, or without
// memory.
ffi::Tensor NewTensor(const std::vector<int64_t>& shape, DLDataType dtype);

// A tensor over memory that the caller keeps alive while the tensor is read; `data` is aligned as above.
ffi::Tensor NewView(void* data, const std::vector<int64_t>& shape, DLDataType dtype);

// A tensor with its own memory, all zeros; the system allocates it on first use, however large a shape a manifest
// declares.
ffi::Tensor NewZeros(const std::vector<int64_t>& shape, DLDataType dtype);

// The described tensors of a part of a module, in that order: views if the data is aligned, otherwise copies.
// Throws Error unless `blob` is a safetensors file of exactly these. Messages start with `what`: "the parameters".
std::vector<NamedTensor> ReadTensors(Span blob, const std::vector<Description>& expected, const std::string& what);

// The same for a user's file of inputs: it may have metadata, and its shapes are checked later with the inputs.
// Messages start with `path`.
std::vector<ffi::Tensor> ReadInputs(Span blob, const std::vector<Description>& inputs, const std::string& path);

// A safetensors blob of the described tensors.
std::string WriteTensors(const std::vector<Description>& descriptions, const std::vector<ffi::Tensor>& tensors);

}  // namespace tensorwright
