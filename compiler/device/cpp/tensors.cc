// Tensors and safetensors blobs.
#include <cstdlib>
#include <cstring>

#include "artifact.h"

namespace tensorwright {
namespace {

namespace json = tvm::ffi::json;
constexpr size_t kAlignment = 64;

struct Allocator {
  void AllocData(DLTensor* tensor) {
    size_t bytes = (TensorBytes(*tensor) + kAlignment - 1) / kAlignment * kAlignment;
    tensor->data = std::aligned_alloc(kAlignment, bytes ? bytes : kAlignment);
    if (tensor->data == nullptr) throw Error("out of memory");
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// Memory of somebody else, who keeps it for as long as the tensor lives.
struct Borrowed {
  void* memory;
  void AllocData(DLTensor* tensor) { tensor->data = memory; }
  void FreeData(DLTensor*) {}
};

constexpr DLDevice kCpu{kDLCPU, 0};

std::string StorageName(const std::string& dtype) {
  static const std::pair<const char*, const char*> names[] = {
      {"bool", "BOOL"},    {"int8", "I8"},      {"int16", "I16"},   {"int32", "I32"},         {"int64", "I64"},
      {"uint8", "U8"},     {"uint16", "U16"},   {"uint32", "U32"},  {"uint64", "U64"},        {"float16", "F16"},
      {"float32", "F32"},  {"float64", "F64"},  {"bfloat16", "BF16"}, {"float8_e4m3fn", "F8_E4M3"}, {"float8_e5m2", "F8_E5M2"},
      {"int4", "I8"},      {"int2", "I8"}};
  for (auto& [name, storage] : names) {
    if (dtype == name) return storage;
  }
  return "U8";
}

std::string Quoted(const std::string& text) { return json::Stringify(json::Value(ffi::String(text))); }

}  // namespace

size_t TensorBytes(const DLTensor& tensor) {
  size_t count = 1;
  for (int i = 0; i < tensor.ndim; ++i) count *= static_cast<size_t>(tensor.shape[i]);
  return count * ((tensor.dtype.bits * tensor.dtype.lanes + 7) / 8);
}

ffi::Tensor NewTensor(const std::vector<int64_t>& shape, DLDataType dtype) {
  return ffi::Tensor::FromNDAlloc(Allocator(), ffi::Shape(shape), dtype, kCpu);
}

std::vector<NamedTensor> ReadTensors(Span blob, const std::vector<Description>& expected) {
  uint64_t header_bytes = 0;
  if (blob.size < 8) throw Error("a blob of tensors is cut off");
  std::memcpy(&header_bytes, blob.data, 8);
  if (header_bytes > blob.size - 8) throw Error("a blob of tensors is cut off");
  ffi::String problem;
  ffi::String text(reinterpret_cast<const char*>(blob.data) + 8, header_bytes);
  json::Value parsed = json::Parse(text, &problem);
  if (!problem.empty()) throw Error("a blob of tensors has no valid header");
  json::Object header = parsed.cast<json::Object>();
  const uint8_t* body = blob.data + 8 + header_bytes;
  size_t body_bytes = blob.size - 8 - header_bytes;
  std::vector<NamedTensor> result;
  for (const Description& description : expected) {
    if (!header.count(ffi::String(description.name))) throw Error("tensor '" + description.name + "' is missing");
    json::Object entry = header.at(ffi::String(description.name)).cast<json::Object>();
    std::vector<int64_t> shape;
    for (const ffi::Any& size : entry.at(ffi::String("shape")).cast<json::Array>()) shape.push_back(size.cast<int64_t>());
    json::Array offsets = entry.at(ffi::String("data_offsets")).cast<json::Array>();
    int64_t start = offsets[0].cast<int64_t>(), end = offsets[1].cast<int64_t>();
    bool fits = shape.size() == description.shape.size() && 0 <= start && start <= end && end <= static_cast<int64_t>(body_bytes);
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = description.shape[i] < 0 || shape[i] == description.shape[i];
    std::string stored = entry.at(ffi::String("dtype")).cast<ffi::String>();
    if (!fits || stored != StorageName(description.dtype_name)) {
      throw Error("tensor '" + description.name + "' does not have the type and shape that are needed");
    }
    void* memory = const_cast<uint8_t*>(body + start);
    bool aligned = reinterpret_cast<uintptr_t>(memory) % kAlignment == 0;
    ffi::Tensor tensor = aligned ? ffi::Tensor::FromNDAlloc(Borrowed{memory}, ffi::Shape(shape), description.dtype, kCpu)
                                 : NewTensor(shape, description.dtype);
    size_t bytes = TensorBytes(*tensor.GetDLTensorPtr());
    if (bytes != static_cast<size_t>(end - start)) throw Error("tensor '" + description.name + "' has a wrong size");
    if (!aligned) std::memcpy(tensor.data_ptr(), memory, bytes);
    result.push_back({description.name, tensor});
  }
  return result;
}

std::string WriteTensors(const std::vector<Description>& descriptions, const std::vector<ffi::Tensor>& tensors) {
  std::string header = "{";
  size_t position = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    size_t bytes = TensorBytes(*tensors[i].GetDLTensorPtr());
    std::string shape;
    for (int64_t size : tensors[i].shape()) shape += (shape.empty() ? "" : ",") + std::to_string(size);
    header += (i ? "," : "") + Quoted(descriptions[i].name) + ":{\"dtype\":\"" + StorageName(descriptions[i].dtype_name) +
              "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(position) + "," + std::to_string(position + bytes) + "]}";
    position += bytes;
  }
  header += "}";
  header.append((kAlignment - (header.size() + 8) % kAlignment) % kAlignment, ' ');
  uint64_t header_bytes = header.size();
  std::string blob(reinterpret_cast<const char*>(&header_bytes), 8);
  blob += header;
  for (const ffi::Tensor& tensor : tensors) {
    blob.append(static_cast<const char*>(tensor.data_ptr()), TensorBytes(*tensor.GetDLTensorPtr()));
  }
  return blob;
}

}  // namespace tensorwright
