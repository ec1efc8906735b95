// A module file (.twm) in memory, checked. The format is described in the container of the Python package.
#pragma once

#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace tensorwright {

namespace ffi = tvm::ffi;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Name, element type and shape of a tensor; an open size is -1.
struct Description {
  std::string name;
  std::string dtype_name;
  DLDataType dtype;
  std::vector<int64_t> shape;
};

// Files of this and older versions can be read.
constexpr uint32_t kFormatVersion = 1;

struct NamedTensor {
  std::string name;
  ffi::Tensor tensor;
};

struct Span {
  const uint8_t* data = nullptr;
  size_t size = 0;
};

// Bytes of a tensor; types of less than a byte take one byte an element.
size_t TensorBytes(const DLTensor& tensor);

// A tensor of its own memory, 64-byte aligned as generated code requires.
ffi::Tensor NewTensor(const std::vector<int64_t>& shape, DLDataType dtype);

// The tensors of a safetensors blob that are described, in that order: views where the data is aligned, copies where not.
std::vector<NamedTensor> ReadTensors(Span blob, const std::vector<Description>& expected);

// A safetensors blob of tensors that are described.
std::string WriteTensors(const std::vector<Description>& descriptions, const std::vector<ffi::Tensor>& tensors);

class TrustedKeys;

class Artifact {
 public:
  // Throws Error unless it is a whole module file whose checksums all match. With trusted keys (none if null or empty)
  // it must have a valid signature by one of them, and is read into memory of its own, so that it stays what was checked.
  static std::shared_ptr<Artifact> Open(const std::string& path, const TrustedKeys* trusted = nullptr);
  static std::shared_ptr<Artifact> FromMemory(Span file, const std::string& origin, const TrustedKeys* trusted = nullptr);
  ~Artifact();

  std::string model_name, architecture, target_name;
  std::string engine;  // the version of TVM that compiled it
  std::vector<std::string> required_features;  // of the processor
  std::string digest;  // of the head, which holds the digests of all sections
  std::vector<Description> inputs, outputs, parameter_descriptions, reference_input_descriptions, reference_output_descriptions;
  int threads = 0;  // 0: no setting
  size_t compact_parameters = 0;  // how many of the last ones the module's code expands when it is loaded
  double relative_tolerance = 0, absolute_tolerance = 0;
  Span library, parameters, reference_inputs, reference_outputs;

  Artifact(const Artifact&) = delete;

 private:
  Artifact() = default;
  void Parse(const std::string& origin, const TrustedKeys* trusted);
  void ParseManifest(const std::string& text);

  Span file_;
  bool mapped_ = false;
};

}  // namespace tensorwright
