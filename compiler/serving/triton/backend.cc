// A backend of Triton Inference Server for modules of Tensorwright, over their C API; no Python.
//
// Triton loads it for models whose config.pbtxt says `backend: "tensorwright"`. A model is loaded once; its instances share
// code and parameters, and each runs on a thread of its own. Requests of one batch are run together where their rows can be
// put one behind the other; where that run fails, each is run alone, so that a bad one fails alone. With paths of public keys
// in TENSORWRIGHT_TRUSTED_KEYS (separated by colons), models must be signed by one of these.
#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tensorwright.h"
#include "triton/core/tritonbackend.h"

namespace {

constexpr size_t kAlignment = 64;  // memory that begins at a multiple is read where it is

struct ElementType {
  const char* name;
  TRITONSERVER_DataType type;
};

constexpr ElementType kElementTypes[] = {
    {"bool", TRITONSERVER_TYPE_BOOL},     {"uint8", TRITONSERVER_TYPE_UINT8},   {"uint16", TRITONSERVER_TYPE_UINT16},
    {"uint32", TRITONSERVER_TYPE_UINT32}, {"uint64", TRITONSERVER_TYPE_UINT64}, {"int8", TRITONSERVER_TYPE_INT8},
    {"int16", TRITONSERVER_TYPE_INT16},   {"int32", TRITONSERVER_TYPE_INT32},   {"int64", TRITONSERVER_TYPE_INT64},
    {"float16", TRITONSERVER_TYPE_FP16},  {"float32", TRITONSERVER_TYPE_FP32},  {"float64", TRITONSERVER_TYPE_FP64},
    {"bfloat16", TRITONSERVER_TYPE_BF16},
};

// The error of a request: thrown here, and returned to Triton at its API's boundary.
struct Failure {
  TRITONSERVER_Error_Code code;
  std::string text;
};

[[noreturn]] void Fail(TRITONSERVER_Error_Code code, const std::string& text) { throw Failure{code, text}; }

void Check(TRITONSERVER_Error* error) {
  if (!error) return;
  Failure failure{TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error)};
  TRITONSERVER_ErrorDelete(error);
  throw failure;
}

// The C API's last error, as one that a client is told: it comes of what was sent.
void CheckCall(int failed) {
  if (failed) Fail(TRITONSERVER_ERROR_INVALID_ARG, tensorwright_last_error());
}

template <typename Function>
TRITONSERVER_Error* Guarded(Function function) {
  try {
    function();
    return nullptr;
  } catch (const Failure& failure) {
    return TRITONSERVER_ErrorNew(failure.code, failure.text.c_str());
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, error.what());
  }
}

uint64_t Now() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

TRITONSERVER_DataType TypeOf(const char* name) {
  for (const ElementType& each : kElementTypes) {
    if (std::strcmp(each.name, name) == 0) return each.type;
  }
  Fail(TRITONSERVER_ERROR_UNSUPPORTED, std::string("Triton has no element type ") + name);
}

// The paths in an environment variable, separated by colons.
std::vector<std::string> PathsOf(const char* variable) {
  std::vector<std::string> paths;
  const char* text = std::getenv(variable);
  for (std::string rest = text ? text : ""; !rest.empty();) {
    size_t end = std::min(rest.find(':'), rest.size());
    if (end) paths.push_back(rest.substr(0, end));
    rest.erase(0, end + 1);
  }
  return paths;
}

struct FreeModule {
  void operator()(tensorwright_module* module) const { tensorwright_free(module); }
};
using ModuleHandle = std::unique_ptr<tensorwright_module, FreeModule>;

// Memory that grows and is used again, at a multiple of 64 bytes.
class Staging {
 public:
  char* Sized(size_t bytes) {
    if (bytes > capacity_) {
      size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment;
      memory_.reset(static_cast<char*>(std::aligned_alloc(kAlignment, whole)));
      if (!memory_) Fail(TRITONSERVER_ERROR_INTERNAL, "out of memory for inputs of " + std::to_string(bytes) + " bytes");
      capacity_ = whole;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t capacity_ = 0;
};

// One input of one request.
struct Given {
  TRITONBACKEND_Input* input;
  std::vector<int64_t> shape;
  uint64_t bytes;
  uint32_t buffers;
};

Given InputOf(TRITONBACKEND_Request* request, const char* name) {
  Given given;
  const int64_t* shape;
  uint32_t rank;
  Check(TRITONBACKEND_RequestInput(request, name, &given.input));
  Check(TRITONBACKEND_InputProperties(given.input, nullptr, nullptr, &shape, &rank, &given.bytes, &given.buffers));
  given.shape.assign(shape, shape + rank);
  return given;
}

const void* BufferOf(const Given& given, uint32_t index, uint64_t* bytes) {
  const void* data;
  TRITONSERVER_MemoryType kind = TRITONSERVER_MEMORY_CPU;
  int64_t device = 0;
  Check(TRITONBACKEND_InputBuffer(given.input, index, &data, bytes, &kind, &device));
  if (kind == TRITONSERVER_MEMORY_GPU) Fail(TRITONSERVER_ERROR_UNSUPPORTED, "inputs in memory of a GPU are not supported");
  return data;
}

// A model's instance: a module for one thread, and memory of its inputs.
class Instance {
 public:
  explicit Instance(const tensorwright_module* model) {
    tensorwright_module* shared;
    CheckCall(tensorwright_share(model, &shared));
    module_.reset(shared);
    staging_.resize(static_cast<size_t>(tensorwright_input_count(shared)));
    outputs_.resize(static_cast<size_t>(tensorwright_output_count(shared)));
  }

  // Runs requests whose rows lie behind each other, and answers each. Throws Failure, before any is answered.
  void Run(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count) {
    uint64_t start = Now();
    std::vector<int64_t> rows = Gather(requests, count);
    uint64_t begin = Now();
    CheckCall(tensorwright_run(module_.get(), inputs_.data(), outputs_.data()));
    uint64_t end = Now();
    int64_t all = 0, first = 0;
    for (int64_t each : rows) all += each;
    if (count > 1) CheckRows(all);
    for (uint32_t i = 0; i < count; ++i) {
      Answer(requests[i], first, rows[i], all);
      first += rows[i];
    }
    uint64_t answered = Now();
    for (uint32_t i = 0; i < count; ++i) {
      TRITONBACKEND_ModelInstanceReportStatistics(instance, requests[i], true, start, begin, end, answered);
      TRITONBACKEND_RequestRelease(requests[i], TRITONSERVER_REQUEST_RELEASE_ALL);
    }
    TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, static_cast<uint64_t>(std::max<int64_t>(all, 1)), start, begin, end, answered);
  }

 private:
  // Points the inputs at the requests' data; how many rows each request has.
  std::vector<int64_t> Gather(TRITONBACKEND_Request** requests, uint32_t count) {
    inputs_.assign(staging_.size(), {});
    shapes_.assign(staging_.size(), {});
    std::vector<int64_t> rows(count, 1);
    for (size_t i = 0; i < staging_.size(); ++i) {
      CheckCall(tensorwright_input(module_.get(), static_cast<int32_t>(i), &inputs_[i]));
      std::vector<Given> parts;
      uint64_t bytes = 0;
      for (uint32_t r = 0; r < count; ++r) {
        parts.push_back(InputOf(requests[r], inputs_[i].name));
        bytes += parts.back().bytes;
        if (count > 1) rows[r] = RowsOf(parts.back(), parts.front(), i == 0 ? -1 : rows[r]);
      }
      shapes_[i] = parts.front().shape;
      for (uint32_t r = 1; r < count; ++r) shapes_[i][0] += rows[r];
      inputs_[i].rank = static_cast<int32_t>(shapes_[i].size());
      inputs_[i].shape = shapes_[i].data();
      inputs_[i].bytes = bytes;
      inputs_[i].data = const_cast<void*>(Joined(parts, bytes, &staging_[i]));
    }
    return rows;
  }

  // The rows of a part of a batch. Throws Failure where it cannot be put behind the first one; `known`: of its other inputs.
  static int64_t RowsOf(const Given& part, const Given& first, int64_t known) {
    bool fits = !part.shape.empty() && part.shape.size() == first.shape.size() && std::equal(part.shape.begin() + 1, part.shape.end(), first.shape.begin() + 1);
    if (!fits || (known >= 0 && part.shape[0] != known)) Fail(TRITONSERVER_ERROR_INVALID_ARG, "requests of one batch differ in shape");
    return part.shape[0];
  }

  // The parts behind each other: where they are, if that is one piece of memory.
  static const void* Joined(const std::vector<Given>& parts, uint64_t bytes, Staging* staging) {
    uint64_t size;
    if (parts.size() == 1 && parts[0].buffers == 1) return BufferOf(parts[0], 0, &size);
    char* memory = staging->Sized(bytes);
    char* end = memory;
    for (const Given& part : parts) {
      for (uint32_t i = 0; i < part.buffers; ++i) {
        const void* data = BufferOf(part, i, &size);
        if (size > static_cast<uint64_t>(memory + bytes - end)) Fail(TRITONSERVER_ERROR_INVALID_ARG, "an input has more bytes than its shape needs");
        std::memcpy(end, data, size);
        end += size;
      }
    }
    return memory;
  }

  // Outputs of a batch must have its rows.
  void CheckRows(int64_t rows) const {
    for (const tensorwright_tensor& each : outputs_) {
      if (each.rank < 1 || each.shape[0] != rows) Fail(TRITONSERVER_ERROR_INTERNAL, std::string("output '") + each.name + "' does not have a row for each of the batch");
    }
  }

  // Sends some rows of the outputs, those that the request asks for.
  void Answer(TRITONBACKEND_Request* request, int64_t first, int64_t rows, int64_t all) {
    TRITONBACKEND_Response* response;
    if (TRITONSERVER_Error* none = TRITONBACKEND_ResponseNew(&response, request)) return TRITONSERVER_ErrorDelete(none);
    TRITONSERVER_Error* problem = Guarded([&] {
      uint32_t wanted = 0;
      Check(TRITONBACKEND_RequestOutputCount(request, &wanted));
      for (const tensorwright_tensor& each : outputs_) {
        if (IsWanted(request, wanted, each.name)) Fill(response, each, first, rows, all);
      }
    });
    TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, problem);
    if (problem) TRITONSERVER_ErrorDelete(problem);
  }

  static bool IsWanted(TRITONBACKEND_Request* request, uint32_t count, const char* output) {
    for (uint32_t i = 0; i < count; ++i) {
      const char* name;
      Check(TRITONBACKEND_RequestOutputName(request, i, &name));
      if (std::strcmp(name, output) == 0) return true;
    }
    return count == 0;
  }

  static void Fill(TRITONBACKEND_Response* response, const tensorwright_tensor& each, int64_t first, int64_t rows, int64_t all) {
    std::vector<int64_t> shape(each.shape, each.shape + each.rank);
    size_t bytes = each.bytes, offset = 0;
    if (rows != all) {
      size_t row = all ? each.bytes / static_cast<size_t>(all) : 0;
      shape[0] = rows, bytes = row * static_cast<size_t>(rows), offset = row * static_cast<size_t>(first);
    }
    TRITONBACKEND_Output* output;
    void* buffer;
    TRITONSERVER_MemoryType kind = TRITONSERVER_MEMORY_CPU;
    int64_t device = 0;
    Check(TRITONBACKEND_ResponseOutput(response, &output, each.name, TypeOf(each.dtype), shape.data(), static_cast<uint32_t>(shape.size())));
    Check(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &kind, &device));
    if (kind == TRITONSERVER_MEMORY_GPU) Fail(TRITONSERVER_ERROR_UNSUPPORTED, "outputs in memory of a GPU are not supported");
    if (bytes) std::memcpy(buffer, static_cast<const char*>(each.data) + offset, bytes);
  }

  ModuleHandle module_;
  std::vector<Staging> staging_;
  std::vector<std::vector<int64_t>> shapes_;
  std::vector<tensorwright_tensor> inputs_, outputs_;
};

// Answers a request with an error.
void Refuse(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request, const Failure& failure, uint64_t start) {
  TRITONSERVER_Error* error = TRITONSERVER_ErrorNew(failure.code, failure.text.c_str());
  TRITONBACKEND_Response* response;
  if (TRITONSERVER_Error* none = TRITONBACKEND_ResponseNew(&response, request)) {
    TRITONSERVER_ErrorDelete(none);
  } else {
    TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error);
  }
  TRITONSERVER_ErrorDelete(error);
  uint64_t end = Now();
  TRITONBACKEND_ModelInstanceReportStatistics(instance, request, false, start, start, end, end);
  TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL);
}

void Execute(TRITONBACKEND_ModelInstance* instance, Instance* state, TRITONBACKEND_Request** requests, uint32_t count) {
  uint64_t start = Now();
  try {
    return state->Run(instance, requests, count);
  } catch (const Failure& failure) {
    if (count == 1) return Refuse(instance, requests[0], failure, start);
  } catch (const std::exception& error) {
    if (count == 1) return Refuse(instance, requests[0], {TRITONSERVER_ERROR_INTERNAL, error.what()}, start);
  }
  for (uint32_t i = 0; i < count; ++i) Execute(instance, state, requests + i, 1);
}

}  // namespace

extern "C" {

TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  return Guarded([] {
    uint32_t major, minor;
    Check(TRITONBACKEND_ApiVersion(&major, &minor));
    if (major == TRITONBACKEND_API_VERSION_MAJOR) return;
    Fail(TRITONSERVER_ERROR_UNSUPPORTED, "the backend was built for version " + std::to_string(TRITONBACKEND_API_VERSION_MAJOR) +
                                             " of Triton's interface, and this server has version " + std::to_string(major) + ": build it again");
  });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return Guarded([&] {
    TRITONBACKEND_ArtifactType type;
    const char* folder;
    uint64_t version;
    Check(TRITONBACKEND_ModelRepository(model, &type, &folder));
    Check(TRITONBACKEND_ModelVersion(model, &version));
    std::string path = std::string(folder) + "/" + std::to_string(version) + "/model.twm";
    tensorwright_module* module;
    std::vector<std::string> keys = PathsOf("TENSORWRIGHT_TRUSTED_KEYS");
    std::vector<const char*> trusted;
    for (const std::string& key : keys) trusted.push_back(key.c_str());
    int failed = keys.empty() ? tensorwright_load(path.c_str(), &module) : tensorwright_load_trusted(path.c_str(), trusted.data(), trusted.size(), &module);
    if (failed) Fail(TRITONSERVER_ERROR_UNAVAILABLE, tensorwright_last_error());
    ModuleHandle held(module);
    Check(TRITONBACKEND_ModelSetState(model, module));
    held.release();
  });
}

TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return Guarded([&] {
    void* state;
    Check(TRITONBACKEND_ModelState(model, &state));
    tensorwright_free(static_cast<tensorwright_module*>(state));
  });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return Guarded([&] {
    TRITONBACKEND_Model* model;
    void* module;
    Check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    Check(TRITONBACKEND_ModelState(model, &module));
    auto state = std::make_unique<Instance>(static_cast<const tensorwright_module*>(module));
    Check(TRITONBACKEND_ModelInstanceSetState(instance, state.get()));
    state.release();
  });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return Guarded([&] {
    void* state;
    Check(TRITONBACKEND_ModelInstanceState(instance, &state));
    delete static_cast<Instance*>(state);
  });
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, const uint32_t count) {
  return Guarded([&] {
    void* state;
    Check(TRITONBACKEND_ModelInstanceState(instance, &state));
    Execute(instance, static_cast<Instance*>(state), requests, count);
  });
}

}  // extern "C"
