#include "tensors.h"

#include <tvm/ffi/extra/json.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>

#include "checked_json.h"
#include "dtypes.h"

namespace tensorwright {
namespace {

constexpr size_t kLength = 8;
constexpr uint64_t kMaxHeader = 64 << 20;
constexpr DLDevice kCpu{kDLCPU, 0};
const char* const kPadding = "__padding__";    // prefix of tensors that only fill gaps
const char* const kMetadata = "__metadata__";  // of strings; not a tensor

// Memory of the tensor.
struct Owned {
  void* memory;
  void AllocData(DLTensor* tensor) { tensor->data = memory; }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// Memory of the tensor, which begins at the first aligned address in it.
struct OwnedUnaligned {
  void* memory;
  void AllocData(DLTensor* tensor) {
    uintptr_t address = reinterpret_cast<uintptr_t>(memory);
    tensor->data = static_cast<uint8_t*>(memory) + (kAlignment - address % kAlignment) % kAlignment;
  }
  void FreeData(DLTensor*) { std::free(memory); }
};

// Memory that the caller keeps alive as long as the tensor.
struct Borrowed {
  void* memory;
  void AllocData(DLTensor* tensor) { tensor->data = memory; }
  void FreeData(DLTensor*) {}
};

struct Entry {
  std::string storage;
  std::vector<int64_t> shape;
  size_t start, end;
};

// A safetensors blob: the contents of its header, with all positions checked to be inside the body.
struct Blob {
  std::map<std::string, Entry> entries;
  Span body;
};

Entry ReadEntry(const JsonValue& value) {
  value.Check(kTensorEntrySchema);
  Entry entry{value["dtype"].Text(), {}, 0, 0};
  for (const JsonValue& size : value["shape"].Items()) entry.shape.push_back(size.Whole(0, kMaxElements));
  std::vector<JsonValue> offsets = value["data_offsets"].Items();
  constexpr int64_t farthest = std::numeric_limits<ptrdiff_t>::max();  // the schema's limit is beyond 32 bits
  entry.start = static_cast<size_t>(offsets[0].Whole(0, farthest)), entry.end = static_cast<size_t>(offsets[1].Whole(0, farthest));
  return entry;
}

// Tensors must be contiguous without gaps or overlap, fill the body, and have sizes that match their shapes.
void CheckPlaces(const Blob& blob, const std::string& what) {
  std::vector<std::pair<const std::string*, const Entry*>> sorted;
  for (const auto& [name, entry] : blob.entries) sorted.emplace_back(&name, &entry);
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& left, const auto& right) {
    return std::pair(left.second->start, left.second->end) < std::pair(right.second->start, right.second->end);
  });
  size_t position = 0;
  for (const auto& [name, entry] : sorted) {
    size_t element = StorageBytes(entry->storage);
    DLDataType dtype{kDLUInt, static_cast<uint8_t>(8 * element), 1};
    bool follows = entry->start == position && entry->end >= position;
    if (element == 0 || !follows || entry->end - position != TensorBytes(entry->shape.data(), entry->shape.size(), dtype)) {
      throw Error(what + ": tensor " + Quoted(*name) + " has a wrong type, offset or size");
    }
    position = entry->end;
  }
  if (position != blob.body.size) {
    throw Error(what + ": " + std::to_string(blob.body.size) + " bytes are stored where " + std::to_string(position) + " are described");
  }
}

Blob ReadBlob(Span file, const std::string& what, bool may_have_metadata) {
  uint64_t header = 0;
  if (file.size < kLength) throw Error(what + ": it is truncated");
  std::memcpy(&header, file.data, kLength);
  if (header > std::min<uint64_t>(file.size - kLength, kMaxHeader)) throw Error(what + ": it has no valid header");
  size_t header_bytes = static_cast<size_t>(header), start = kLength + header_bytes;
  Blob blob{{}, {file.data + start, file.size - start}};
  JsonValue parsed = JsonValue::Parse(reinterpret_cast<const char*>(file.data) + kLength, header_bytes, what + ": its header");
  for (const auto& [name, value] : parsed.Members()) {
    if (may_have_metadata && name == kMetadata) {
      for (const auto& [key, text] : value.Members()) text.Text(kMaxHeader);
    } else {
      blob.entries.emplace(name, ReadEntry(value));
    }
  }
  CheckPlaces(blob, what);
  return blob;
}

void CheckTruthValues(const Entry& entry, Span body, const std::string& what) {
  if (entry.storage != "BOOL" || AreTruthValues(body.data + entry.start, entry.end - entry.start)) return;
  throw Error(what + " has boolean values other than 0 and 1");
}

ffi::Tensor TensorAt(const Entry& entry, Span body, const Description& description) {
  void* memory = const_cast<uint8_t*>(body.data + entry.start);
  if (reinterpret_cast<uintptr_t>(memory) % kAlignment == 0) {
    return ffi::Tensor::FromNDAlloc(Borrowed{memory}, ffi::Shape(entry.shape), description.dtype, kCpu);
  }
  ffi::Tensor tensor = NewTensor(entry.shape, description.dtype);
  if (entry.end > entry.start) std::memcpy(tensor.data_ptr(), memory, entry.end - entry.start);
  return tensor;
}

// A blob must only have the expected tensors.
void CheckNames(const Blob& blob, const std::vector<Description>& expected, const std::string& what) {
  for (const Description& description : expected) {
    if (!blob.entries.count(description.name)) throw Error(what + ": tensor " + Quoted(description.name) + " is missing");
  }
  for (const auto& [name, entry] : blob.entries) {
    if (name.rfind(kPadding, 0) == 0) continue;
    bool known = std::any_of(expected.begin(), expected.end(), [&name = name](const Description& each) { return each.name == name; });
    if (!known) throw Error(what + ": no tensor is named " + Quoted(name));
  }
}

[[noreturn]] void OutOfMemory(const std::vector<int64_t>& shape) {
  throw Error("out of memory for a tensor of the shape " + ShapeText(shape.data(), shape.size()));
}

}  // namespace

std::string ShapeText(const int64_t* shape, size_t rank) {
  std::string text;
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return "[" + text + "]";
}

size_t TensorBytes(const int64_t* shape, size_t rank, DLDataType dtype) {
  int64_t elements = 1;
  bool empty = false;
  for (size_t i = 0; i < rank; ++i) {
    if (shape[i] < 0) throw Error("the shape " + ShapeText(shape, rank) + " has a negative size");
    empty = empty || shape[i] == 0;
    if (shape[i] > 0 && (__builtin_mul_overflow(elements, shape[i], &elements) || elements > kMaxElements)) {
      throw Error("the shape " + ShapeText(shape, rank) + " has more than 2^60 elements");
    }
  }
  if (empty) return 0;
  uint64_t bytes = 0;
  uint64_t element = (static_cast<uint64_t>(dtype.bits) * dtype.lanes + 7) / 8;
  if (__builtin_mul_overflow(static_cast<uint64_t>(elements), element, &bytes) || bytes > std::numeric_limits<size_t>::max() - kAlignment) {
    throw Error("the shape " + ShapeText(shape, rank) + " is larger than memory");
  }
  return static_cast<size_t>(bytes);
}

size_t TensorBytes(const DLTensor& tensor) { return TensorBytes(tensor.shape, static_cast<size_t>(tensor.ndim), tensor.dtype); }

bool AreTruthValues(const uint8_t* bytes, size_t count) {
  uint64_t seen = 0, eight = 0;
  size_t at = 0;
  for (; at + sizeof eight <= count; at += sizeof eight) {
    std::memcpy(&eight, bytes + at, sizeof eight);
    seen |= eight;
  }
  for (; at < count; ++at) seen |= bytes[at];
  return (seen & 0xfefefefefefefefe) == 0;
}

ffi::Tensor NewTensor(const std::vector<int64_t>& shape, DLDataType dtype) {
  size_t bytes = TensorBytes(shape.data(), shape.size(), dtype);
  void* memory = std::aligned_alloc(kAlignment, std::max<size_t>(1, (bytes + kAlignment - 1) / kAlignment) * kAlignment);
  if (!memory) OutOfMemory(shape);
  return ffi::Tensor::FromNDAlloc(Owned{memory}, ffi::Shape(shape), dtype, kCpu);
}

ffi::Tensor NewView(void* data, const std::vector<int64_t>& shape, DLDataType dtype) {
  return ffi::Tensor::FromNDAlloc(Borrowed{data}, ffi::Shape(shape), dtype, kCpu);
}

ffi::Tensor NewZeros(const std::vector<int64_t>& shape, DLDataType dtype) {
  void* memory = std::calloc(TensorBytes(shape.data(), shape.size(), dtype) + kAlignment, 1);
  if (!memory) OutOfMemory(shape);
  return ffi::Tensor::FromNDAlloc(OwnedUnaligned{memory}, ffi::Shape(shape), dtype, kCpu);
}

std::vector<NamedTensor> ReadTensors(Span file, const std::vector<Description>& expected, const std::string& what) {
  Blob blob = ReadBlob(file, what, false);
  CheckNames(blob, expected, what);
  std::vector<NamedTensor> result;
  for (const Description& description : expected) {
    const Entry& entry = blob.entries.at(description.name);
    if (entry.storage != FindElementType(description.dtype_name)->storage || entry.shape != description.shape) {
      throw Error(what + ": " + description.Text() + " is stored as " + entry.storage + ShapeText(entry.shape.data(), entry.shape.size()),
                  "export the module again");
    }
    CheckTruthValues(entry, blob.body, what + ": tensor " + Quoted(description.name));
    result.push_back({description.name, TensorAt(entry, blob.body, description)});
  }
  return result;
}

std::vector<ffi::Tensor> ReadInputs(Span file, const std::vector<Description>& inputs, const std::string& path) {
  Blob blob = ReadBlob(file, path, true);
  CheckNames(blob, inputs, path);
  std::vector<ffi::Tensor> result;
  for (const Description& input : inputs) {
    const Entry& entry = blob.entries.at(input.name);
    if (entry.storage != FindElementType(input.dtype_name)->storage) {
      throw Error(path + ": input " + Quoted(input.name) + " is stored as " + entry.storage, "the module takes " + input.Text());
    }
    result.push_back(TensorAt(entry, blob.body, input));
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
    header += (i ? "," : "") + JsonText(descriptions[i].name) + ":{\"dtype\":\"" + FindElementType(descriptions[i].dtype_name)->storage +
              "\",\"shape\":[" + shape + "],\"data_offsets\":[" + std::to_string(position) + "," + std::to_string(position + bytes) + "]}";
    position += bytes;
  }
  header += "}";
  header.append((kAlignment - (header.size() + kLength) % kAlignment) % kAlignment, ' ');
  uint64_t header_bytes = header.size();
  std::string blob(reinterpret_cast<const char*>(&header_bytes), kLength);
  blob += header;
  for (const ffi::Tensor& tensor : tensors) {
    blob.append(static_cast<const char*>(tensor.data_ptr()), TensorBytes(*tensor.GetDLTensorPtr()));
  }
  return blob;
}

}  // namespace tensorwright
