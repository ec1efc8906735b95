#include "cuda_runtime.h"

#include <dlfcn.h>

#include "error.h"

namespace tensorwright {
namespace {

const char* const kRuntime = "libcudart.so.13";
const char* const kEngine = "libtvm_runtime_cuda.so";

void* Library(const char* name) {
  if (void* library = dlopen(name, RTLD_NOW | RTLD_GLOBAL)) return library;
  const char* reason = dlerror();
  throw Error(std::string(name) + " cannot be loaded: " + (reason ? reason : "it is missing"),
              "use the programs and the lib/ of a bundle that was made of a module for a GPU");
}

template <typename Function>
void Take(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (!*function) throw Error(std::string(kRuntime) + " has no function " + name, "use the lib/ of the bundle");
}

CudaRuntime Load() {
  CudaRuntime made;
  void* library = Library(kRuntime);
  Take(library, "cudaSetDevice", &made.SetDevice), Take(library, "cudaMemGetInfo", &made.MemGetInfo);
  Take(library, "cudaGetLastError", &made.GetLastError);
  Take(library, "cudaGetErrorName", &made.GetErrorName), Take(library, "cudaGetErrorString", &made.GetErrorString);
  Take(library, "cudaEventCreate", &made.EventCreate), Take(library, "cudaEventRecord", &made.EventRecord);
  Take(library, "cudaEventSynchronize", &made.EventSynchronize), Take(library, "cudaEventElapsedTime", &made.EventElapsedTime);
  Take(library, "cudaEventDestroy", &made.EventDestroy), Take(library, "cudaStreamCreateWithFlags", &made.StreamCreateWithFlags);
  Take(library, "cudaStreamSynchronize", &made.StreamSynchronize), Take(library, "cudaStreamDestroy", &made.StreamDestroy);
  Take(library, "cudaStreamBeginCapture", &made.StreamBeginCapture), Take(library, "cudaStreamEndCapture", &made.StreamEndCapture);
  Take(library, "cudaGraphInstantiate", &made.GraphInstantiate), Take(library, "cudaGraphDestroy", &made.GraphDestroy);
  Take(library, "cudaGraphExecDestroy", &made.GraphExecDestroy), Take(library, "cudaGraphLaunch", &made.GraphLaunch);
  Library(kEngine);
  return made;
}

bool Has(const std::string& text, std::initializer_list<const char*> words) {
  for (const char* word : words) {
    if (text.find(word) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

void CudaRuntime::Check(int result, const char* what) const {
  if (result == 0) return;
  GetLastError();  // otherwise the next call reports it again
  throw Error(std::string(what) + " failed: " + GetErrorName(result) + ": " + GetErrorString(result));
}

const CudaRuntime& LoadCudaRuntime() {
  static const CudaRuntime loaded = Load();
  return loaded;
}

void ExplainCudaFailure(const std::string& failure, const std::string& memory) {
  if (Has(failure, {"out of memory", "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY"})) {
    throw Error("not enough GPU memory: " + memory, "end other programs on it, or run the model with smaller inputs or in lower precision");
  }
  if (Has(failure, {"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "unsupported toolchain", "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "PTX JIT"})) {
    throw Error("the module's machine code is for another GPU, and this driver cannot translate its PTX: it is older than the CUDA that the module was "
                "compiled with, or its compiler is missing", "compile the model for this GPU, or update the driver");
  }
  if (Has(failure, {"CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available", "device kernel image is invalid"})) {
    throw Error("the module holds no code for this GPU", "compile the model for it, or for an older one");
  }
}

}  // namespace tensorwright
