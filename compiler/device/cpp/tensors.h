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

// Bytes of a tensor; types of less than a byte take one byte an element. Throws Error for a shape that has a negative
// size or more elements than any memory.
size_t TensorBytes(const int64_t* shape, size_t rank, DLDataType dtype);
size_t TensorBytes(const DLTensor& tensor);

// True if all bytes are 0 or 1, as generated code assumes of booleans.
bool AreTruthValues(const uint8_t* bytes, size_t count);

// A tensor of its own memory, 64-byte aligned as generated code requires. Throws Error as TensorBytes, or without memory.
ffi::Tensor NewTensor(const std::vector<int64_t>& shape, DLDataType dtype);

// A tensor over memory that somebody else keeps for as long as the tensor is read; `data` is aligned as above.
ffi::Tensor NewView(void* data, const std::vector<int64_t>& shape, DLDataType dtype);

// A tensor of its own memory, all zeros; the system gives the memory when it is used, however large a shape a manifest announces.
ffi::Tensor NewZeros(const std::vector<int64_t>& shape, DLDataType dtype);

// The tensors of a part of a module that are described, in that order: views where the data is aligned, copies where not.
// Throws Error unless `blob` is a safetensors file of exactly these. `what` begins the messages: "the parameters".
std::vector<NamedTensor> ReadTensors(Span blob, const std::vector<Description>& expected, const std::string& what);

// The same for a file that somebody made to run a module on: it may have metadata, and its shapes are left to the checks
// of inputs. `path` begins the messages.
std::vector<ffi::Tensor> ReadInputs(Span blob, const std::vector<Description>& inputs, const std::string& path);

// A safetensors blob of tensors that are described.
std::string WriteTensors(const std::vector<Description>& descriptions, const std::vector<ffi::Tensor>& tensors);

}  // namespace tensorwright
