#include <cstring>
#include <exception>

#include "dtypes.h"
#include "linked.h"
#include "module.h"
#include "signature.h"
#include "tensorwright.h"

using tensorwright::Artifact;
using tensorwright::Description;
using tensorwright::Error;
using tensorwright::Module;
using tensorwright::Quoted;
using tensorwright::TrustedKeys;
namespace ffi = tvm::ffi;

struct tensorwright_module {
  explicit tensorwright_module(std::shared_ptr<Artifact> artifact) : module(std::move(artifact)) {}
  Module module;
  std::vector<ffi::Tensor> inputs, outputs;
};

namespace {

thread_local std::string last_error;

template <typename Function>
int Guarded(Function function) {
  try {
    function();
    last_error.clear();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown error";
  }
  return 1;
}

// The module of a file, or the linked one where there is no path.
std::shared_ptr<Artifact> Opened(const char* path, const TrustedKeys& trusted) {
  if (path) return Artifact::Open(path, &trusted);
  if (!tensorwright::LinkedModule().data) throw Error("no module is linked into this program");
  return Artifact::FromMemory(tensorwright::LinkedModule(), "the linked module", &trusted);
}

void NotNull(const void* pointer, const char* what) {
  if (!pointer) throw Error(std::string(what) + " is NULL");
}

void Describe(const std::vector<Description>& all, int32_t index, tensorwright_tensor* result) {
  if (index < 0 || static_cast<size_t>(index) >= all.size()) throw Error("there is no tensor with that index");
  const Description& each = all[static_cast<size_t>(index)];
  *result = {each.name.c_str(), each.dtype_name.c_str(), static_cast<int32_t>(each.shape.size()), each.shape.data(), nullptr, 0};
}

ffi::Tensor Copied(const tensorwright_tensor& given, const Description& wanted) {
  std::string name = "input " + Quoted(wanted.name);
  if (given.dtype && wanted.dtype_name != given.dtype) throw Error(name + " must be " + wanted.dtype_name + ", not " + given.dtype);
  if (given.rank < 0 || given.rank > static_cast<int32_t>(tensorwright::kMostDimensions)) throw Error(name + " has a rank of " + std::to_string(given.rank));
  if (given.rank) NotNull(given.shape, (name + ": its shape").c_str());
  std::vector<int64_t> shape(given.shape, given.shape + given.rank);
  size_t bytes = tensorwright::TensorBytes(shape.data(), shape.size(), wanted.dtype);
  if (given.bytes != bytes) {
    throw Error(name + " has " + std::to_string(given.bytes) + " bytes; its shape needs " + std::to_string(bytes));
  }
  if (bytes) NotNull(given.data, (name + ": its data").c_str());
  ffi::Tensor tensor = tensorwright::NewTensor(shape, wanted.dtype);
  if (bytes) std::memcpy(tensor.data_ptr(), given.data, bytes);
  return tensor;
}

}  // namespace

extern "C" {

const char* tensorwright_last_error(void) { return last_error.c_str(); }

int tensorwright_load(const char* path, tensorwright_module** module) {
  return Guarded([&] {
    NotNull(path, "path"), NotNull(module, "module");
    *module = nullptr;
    *module = new tensorwright_module(Opened(path, {}));
  });
}

int tensorwright_load_linked(tensorwright_module** module) {
  return Guarded([&] {
    NotNull(module, "module");
    *module = nullptr;
    *module = new tensorwright_module(Opened(nullptr, {}));
  });
}

int tensorwright_load_trusted(const char* path, const char* const* trusted_keys, size_t count, tensorwright_module** module) {
  return Guarded([&] {
    NotNull(module, "module");
    *module = nullptr;
    if (count == 0) throw Error("no trusted key is given");
    NotNull(trusted_keys, "trusted_keys");
    TrustedKeys trusted;
    for (size_t i = 0; i < count; ++i) {
      NotNull(trusted_keys[i], "a trusted key");
      trusted.Add(trusted_keys[i]);
    }
    *module = new tensorwright_module(Opened(path, trusted));
  });
}

void tensorwright_free(tensorwright_module* module) { delete module; }

int32_t tensorwright_input_count(const tensorwright_module* module) {
  return module ? static_cast<int32_t>(module->module.artifact().inputs.size()) : 0;
}

int32_t tensorwright_output_count(const tensorwright_module* module) {
  return module ? static_cast<int32_t>(module->module.artifact().outputs.size()) : 0;
}

int tensorwright_input(const tensorwright_module* module, int32_t index, tensorwright_tensor* description) {
  return Guarded([&] {
    NotNull(module, "module"), NotNull(description, "description");
    Describe(module->module.artifact().inputs, index, description);
  });
}

int tensorwright_output(const tensorwright_module* module, int32_t index, tensorwright_tensor* description) {
  return Guarded([&] {
    NotNull(module, "module"), NotNull(description, "description");
    Describe(module->module.artifact().outputs, index, description);
  });
}

size_t tensorwright_element_bytes(const char* dtype) {
  const tensorwright::ElementType* type = dtype ? tensorwright::FindElementType(dtype) : nullptr;
  return type ? type->bytes : 0;
}

int tensorwright_run(tensorwright_module* module, const tensorwright_tensor* inputs, tensorwright_tensor* outputs) {
  return Guarded([&] {
    NotNull(module, "module");
    const Artifact& artifact = module->module.artifact();
    if (!artifact.inputs.empty()) NotNull(inputs, "inputs");
    if (!artifact.outputs.empty()) NotNull(outputs, "outputs");
    module->inputs.clear(), module->outputs.clear();
    for (size_t i = 0; i < artifact.inputs.size(); ++i) module->inputs.push_back(Copied(inputs[i], artifact.inputs[i]));
    module->outputs = module->module.Run(module->inputs);
    for (size_t i = 0; i < module->outputs.size(); ++i) {
      const DLTensor* tensor = module->outputs[i].GetDLTensorPtr();
      outputs[i] = {artifact.outputs[i].name.c_str(), artifact.outputs[i].dtype_name.c_str(), tensor->ndim, tensor->shape,
                    tensor->data, tensorwright::TensorBytes(*tensor)};
    }
  });
}

int tensorwright_verify(tensorwright_module* module, double* largest_difference) {
  return Guarded([&] {
    NotNull(module, "module");
    double difference = module->module.Verify();
    if (largest_difference) *largest_difference = difference;
  });
}

}  // extern "C"
