#include <cstring>
#include <exception>
#include <memory>
#include <mutex>

#include "dtypes.h"
#include "image.h"
#include "linked.h"
#include "module.h"
#include "session.h"
#include "signature.h"
#include "tensorwright.h"

using tensorwright::Artifact;
using tensorwright::Description;
using tensorwright::Error;
using tensorwright::Module;
using tensorwright::Quoted;
using tensorwright::TrustedKeys;
namespace ffi = tvm::ffi;

namespace tensorwright {

// A module, which lives as long as its sessions, and a lock for the one thread that may use it.
struct UsedModule {
  explicit UsedModule(std::unique_ptr<Module> made) : module(std::move(made)) {}
  std::unique_ptr<Module> module;
  std::mutex turn;
};

}  // namespace tensorwright

using tensorwright::UsedModule;

struct tensorwright_module {
  explicit tensorwright_module(std::unique_ptr<Module> made) : used(std::make_shared<UsedModule>(std::move(made))), module(*used->module) {}
  std::shared_ptr<UsedModule> used;
  Module& module;
  std::vector<ffi::Tensor> inputs, outputs;
};

struct tensorwright_session {
  std::shared_ptr<UsedModule> used;
  tensorwright::Session session;
  std::vector<ffi::Tensor> outputs;

  const Artifact& artifact() const { return used->module->artifact(); }
};

struct tensorwright_image {
  ffi::Tensor pixels;
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

void NotNull(const void* pointer, const char* what) {
  if (!pointer) throw Error(std::string(what) + " is NULL");
}

// The same while holding the module's lock.
template <typename Handle, typename Function>
int InTurn(const Handle* handle, const char* name, Function function) {
  return Guarded([&] {
    NotNull(handle, name);
    std::unique_lock<std::mutex> turn(handle->used->turn, std::try_to_lock);
    if (!turn) throw Error("another thread uses the module", "share it (tensorwright_share) for each thread that runs it");
    function();
  });
}

// Deletes a handle while holding the lock, since a thread may be using it.
template <typename Handle>
void Free(Handle* handle) {
  if (!handle) return;
  std::shared_ptr<UsedModule> used = handle->used;
  std::lock_guard<std::mutex> turn(used->turn);
  delete handle;
}

// The module in a file, or the linked one if there is no path.
std::shared_ptr<Artifact> Opened(const char* path, const TrustedKeys& trusted) {
  if (path) return Artifact::Open(path, &trusted);
  if (!tensorwright::LinkedModule().data) throw Error("no module is linked into this program");
  return Artifact::FromMemory(tensorwright::LinkedModule(), "the linked module", &trusted);
}

void Describe(const std::vector<Description>& all, int32_t index, tensorwright_tensor* result) {
  if (index < 0 || static_cast<size_t>(index) >= all.size()) throw Error("there is no tensor with that index");
  const Description& each = all[static_cast<size_t>(index)];
  *result = {each.name.c_str(), each.dtype_name.c_str(), static_cast<int32_t>(each.shape.size()), each.shape.data(), nullptr, 0};
}

// An input: used in place if it is aligned as kernels require, otherwise copied.
ffi::Tensor Taken(const tensorwright_tensor& given, const Description& wanted) {
  std::string name = "input " + Quoted(wanted.name);
  if (given.dtype && wanted.dtype_name != given.dtype) throw Error(name + " must be " + wanted.dtype_name + ", not " + given.dtype);
  if (given.rank < 0 || given.rank > static_cast<int32_t>(tensorwright::kMaxDimensions)) throw Error(name + " has a rank of " + std::to_string(given.rank));
  if (given.rank) NotNull(given.shape, (name + ": its shape").c_str());
  std::vector<int64_t> shape(given.shape, given.shape + given.rank);
  size_t bytes = tensorwright::TensorBytes(shape.data(), shape.size(), wanted.dtype);
  if (given.bytes != bytes) {
    throw Error(name + " has " + std::to_string(given.bytes) + " bytes; its shape needs " + std::to_string(bytes));
  }
  if (bytes) NotNull(given.data, (name + ": its data").c_str());
  if (bytes && reinterpret_cast<uintptr_t>(given.data) % tensorwright::kAlignment == 0) return tensorwright::NewView(given.data, shape, wanted.dtype);
  ffi::Tensor tensor = tensorwright::NewTensor(shape, wanted.dtype);
  if (bytes) std::memcpy(tensor.data_ptr(), given.data, bytes);
  return tensor;
}

void Announce(const ffi::Tensor& tensor, const Description& description, tensorwright_tensor* result) {
  const DLTensor* data = tensor.GetDLTensorPtr();
  *result = {description.name.c_str(), description.dtype_name.c_str(), data->ndim, data->shape, data->data, tensorwright::TensorBytes(*data)};
}

// The description of a session's input or output.
void DescribeChosen(const std::vector<Description>& all, const std::vector<size_t>& chosen, int32_t index, tensorwright_tensor* result) {
  if (index < 0 || static_cast<size_t>(index) >= chosen.size()) throw Error("there is no tensor with that index");
  Describe(all, static_cast<int32_t>(chosen[static_cast<size_t>(index)]), result);
}

}  // namespace

extern "C" {

const char* tensorwright_last_error(void) { return last_error.c_str(); }

int tensorwright_load(const char* path, tensorwright_module** module) {
  return Guarded([&] {
    NotNull(path, "path"), NotNull(module, "module");
    *module = nullptr;
    *module = new tensorwright_module(std::make_unique<Module>(Opened(path, {})));
  });
}

int tensorwright_load_linked(tensorwright_module** module) {
  return Guarded([&] {
    NotNull(module, "module");
    *module = nullptr;
    *module = new tensorwright_module(std::make_unique<Module>(Opened(nullptr, {})));
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
    *module = new tensorwright_module(std::make_unique<Module>(Opened(path, trusted)));
  });
}

int tensorwright_share(const tensorwright_module* module, tensorwright_module** shared) {
  return Guarded([&] {
    NotNull(module, "module"), NotNull(shared, "shared");
    *shared = nullptr;
    *shared = new tensorwright_module(module->module.Shared());
  });
}

int tensorwright_set_threads(tensorwright_module* module, int32_t threads) {
  return InTurn(module, "module", [&] {
    module->module.SetThreads(threads);
  });
}

void tensorwright_free(tensorwright_module* module) { Free(module); }

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

int tensorwright_image_open(const char* path, tensorwright_image** image, tensorwright_tensor* pixels) {
  return Guarded([&] {
    NotNull(path, "path"), NotNull(image, "image"), NotNull(pixels, "pixels");
    *image = nullptr;
    *image = new tensorwright_image{tensorwright::ReadImage(tensorwright::FileBytes(path).span(), path)};
    const DLTensor* data = (*image)->pixels.GetDLTensorPtr();
    *pixels = {"image", "uint8", data->ndim, data->shape, data->data, tensorwright::TensorBytes(*data)};
  });
}

void tensorwright_image_free(tensorwright_image* image) { delete image; }

size_t tensorwright_element_bytes(const char* dtype) {
  const tensorwright::ElementType* type = dtype ? tensorwright::FindElementType(dtype) : nullptr;
  return type ? type->bytes : 0;
}

int tensorwright_run(tensorwright_module* module, const tensorwright_tensor* inputs, tensorwright_tensor* outputs) {
  return InTurn(module, "module", [&] {
    const Artifact& artifact = module->module.artifact();
    if (!artifact.inputs.empty()) NotNull(inputs, "inputs");
    if (!artifact.outputs.empty()) NotNull(outputs, "outputs");
    module->inputs.clear(), module->outputs.clear();
    for (size_t i = 0; i < artifact.inputs.size(); ++i) module->inputs.push_back(Taken(inputs[i], artifact.inputs[i]));
    module->outputs = module->module.Run(module->inputs);
    for (size_t i = 0; i < module->outputs.size(); ++i) Announce(module->outputs[i], artifact.outputs[i], &outputs[i]);
  });
}

int tensorwright_verify(tensorwright_module* module, double* largest_difference) {
  return InTurn(module, "module", [&] {
    double difference = module->module.Verify();
    if (largest_difference) *largest_difference = difference;
  });
}

int tensorwright_session_open(tensorwright_module* module, int64_t capacity, tensorwright_session** session) {
  return InTurn(module, "module", [&] {
    NotNull(session, "session");
    *session = nullptr;
    *session = new tensorwright_session{module->used, tensorwright::Session(&module->module, capacity), {}};
  });
}

void tensorwright_session_free(tensorwright_session* session) { Free(session); }

int32_t tensorwright_session_input_count(const tensorwright_session* session) {
  return session ? static_cast<int32_t>(session->session.inputs().size()) : 0;
}

int32_t tensorwright_session_output_count(const tensorwright_session* session) {
  return session ? static_cast<int32_t>(session->session.outputs().size()) : 0;
}

int tensorwright_session_input(const tensorwright_session* session, int32_t index, tensorwright_tensor* description) {
  return Guarded([&] {
    NotNull(session, "session"), NotNull(description, "description");
    DescribeChosen(session->artifact().inputs, session->session.inputs(), index, description);
  });
}

int tensorwright_session_output(const tensorwright_session* session, int32_t index, tensorwright_tensor* description) {
  return Guarded([&] {
    NotNull(session, "session"), NotNull(description, "description");
    DescribeChosen(session->artifact().outputs, session->session.outputs(), index, description);
  });
}

int tensorwright_session_run(tensorwright_session* session, const tensorwright_tensor* inputs, tensorwright_tensor* outputs) {
  return InTurn(session, "session", [&] {
    const auto &taken = session->session.inputs(), &given = session->session.outputs();
    if (!taken.empty()) NotNull(inputs, "inputs");
    if (!given.empty()) NotNull(outputs, "outputs");
    std::vector<ffi::Tensor> tensors;
    for (size_t i = 0; i < taken.size(); ++i) tensors.push_back(Taken(inputs[i], session->artifact().inputs[taken[i]]));
    session->outputs = session->session.Run(tensors);
    for (size_t i = 0; i < given.size(); ++i) Announce(session->outputs[i], session->artifact().outputs[given[i]], &outputs[i]);
  });
}

int64_t tensorwright_session_length(const tensorwright_session* session) { return session ? session->session.length() : 0; }

int tensorwright_session_reset(tensorwright_session* session) {
  return InTurn(session, "session", [&] {
    session->session.Reset();
  });
}

int tensorwright_session_rewind(tensorwright_session* session, int64_t rows) {
  return InTurn(session, "session", [&] {
    session->session.Rewind(rows);
  });
}

int tensorwright_session_fork(const tensorwright_session* session, tensorwright_session** fork) {
  return InTurn(session, "session", [&] {
    NotNull(fork, "fork");
    *fork = nullptr;
    *fork = new tensorwright_session{session->used, session->session.Fork(), {}};
  });
}

int tensorwright_session_save(const tensorwright_session* session, const char* path) {
  return InTurn(session, "session", [&] {
    NotNull(path, "path");
    tensorwright::WriteFile(path, session->session.Save());
  });
}

int tensorwright_session_load(tensorwright_session* session, const char* path) {
  return InTurn(session, "session", [&] {
    NotNull(path, "path");
    tensorwright::FileBytes file(path);
    session->session.Load(file.span(), path);
  });
}

}  // extern "C"
