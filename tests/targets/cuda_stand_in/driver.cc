// libcuda.so.1: devices, and the modules whose kernels are launched.
#include <cuda.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <set>

#include "device.h"

using namespace stand_in;

namespace {

constexpr uint32_t kFatbin = 0xBA55ED50;
constexpr int kPtx = 1, kMachineCode = 2;

struct Kernel {
  std::string name;
  void (*run)(const int64_t* sizes, void** parameters);
  const char* kinds;     // a letter for each parameter: 'p' for a pointer, 'v' for a value
  const uint8_t* bytes;  // of each
  int64_t dynamic_shared = 48 << 10;
};

struct Module {
  void* library;
  std::list<Kernel> kernels;
};

template <typename T>
T At(const char* data, size_t offset) {
  T value;
  std::memcpy(&value, data + offset, sizeof value);
  return value;
}

// Whether a device of this architecture runs the code of a fatbin.
CUresult Runs(const char* image, size_t size) {
  int capability = static_cast<int>(Setting("STAND_IN_CAPABILITY", 90));
  bool newer_ptx = false;
  for (size_t at = At<uint16_t>(image, 6); at + 32 <= size;) {
    int kind = At<uint16_t>(image, at), architecture = At<int32_t>(image, at + 28);
    if (kind == kMachineCode && architecture / 10 == capability / 10 && architecture <= capability) return CUDA_SUCCESS;
    if (kind == kPtx && architecture <= capability) newer_ptx = true;
    at += At<uint32_t>(image, at + 4) + At<uint64_t>(image, at + 8);
  }
  if (!newer_ptx) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  return Setting("STAND_IN_PTX", 1) ? CUDA_SUCCESS : CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
}

// The name that the test gave to the library of an image's kernels.
std::string Digest(const char* image, size_t size) {
  uint64_t digest = 14695981039346656037u;  // FNV-1a
  for (size_t i = 0; i < size; ++i) digest = (digest ^ static_cast<uint8_t>(image[i])) * 1099511628211u;
  char text[20];
  std::snprintf(text, sizeof text, "%016lx", digest);
  return text;
}

void Run(const Kernel& kernel, const std::vector<int64_t>& sizes, std::vector<std::vector<char>> values) {
  std::vector<void*> parameters;
  for (auto& each : values) parameters.push_back(each.data());
  const char *idle = getenv("STAND_IN_IDLE"), *crash = getenv("STAND_IN_CRASH");
  if (crash && kernel.name == crash) abort();
  if (idle && kernel.name == idle) return;
  Touching([&] { kernel.run(sizes.data(), parameters.data()); });
}

// What a device refuses to launch.
CUresult Check(const Kernel& kernel, const CUlaunchConfig& config, void** parameters) {
  unsigned threads = config.blockDimX * config.blockDimY * config.blockDimZ;
  if (threads == 0 || threads > 1024 || config.blockDimZ > 64) return CUDA_ERROR_INVALID_VALUE;
  if (config.gridDimX == 0 || config.gridDimY - 1 > 65534 || config.gridDimZ - 1 > 65534) return CUDA_ERROR_INVALID_VALUE;
  if (config.sharedMemBytes > kernel.dynamic_shared) return CUDA_ERROR_INVALID_VALUE;
  for (size_t i = 0; kernel.kinds[i]; ++i) {
    void* pointer = *static_cast<void**>(parameters[i]);
    if (kernel.kinds[i] == 'p' && pointer && !IsOnDevice(pointer, 0)) {
      std::fprintf(stderr, "stand-in: parameter %zu of %s is not memory of the device\n", i, kernel.name.c_str());
      return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
  }
  return CUDA_SUCCESS;
}

const char* NameOf(CUresult error) {
  switch (error) {
    case CUDA_SUCCESS: return "CUDA_SUCCESS";
    case CUDA_ERROR_INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case CUDA_ERROR_NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
    case CUDA_ERROR_NO_BINARY_FOR_GPU: return "CUDA_ERROR_NO_BINARY_FOR_GPU";
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION: return "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH: return "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH";
    case CUDA_ERROR_ILLEGAL_ADDRESS: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case CUDA_ERROR_NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    default: return "CUDA_ERROR_UNKNOWN";
  }
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned) {
  if (int64_t mismatch = Setting("STAND_IN_INIT", 0)) return static_cast<CUresult>(mismatch);
  return Setting("STAND_IN_DEVICES", 1) ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int* version) {
  *version = static_cast<int>(Setting("STAND_IN_DRIVER", 13000));
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  *count = static_cast<int>(Setting("STAND_IN_DEVICES", 1));
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice) {
  std::snprintf(name, static_cast<size_t>(length), "stand-in");
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice) {
  *bytes = TotalBytes();
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  int capability = static_cast<int>(Setting("STAND_IN_CAPABILITY", 90));
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? capability / 10 : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR ? capability % 10 : 1024;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** text) {
  *text = NameOf(error);
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) { return cuGetErrorName(error, text); }

CUresult cuModuleLoadData(CUmodule* module, const void* data) {
  std::lock_guard guard(mutex);
  const char* image = static_cast<const char*>(data);
  if (At<uint32_t>(image, 0) != kFatbin) return CUDA_ERROR_INVALID_VALUE;
  size_t size = At<uint16_t>(image, 6) + At<uint64_t>(image, 8);
  if (CUresult problem = Runs(image, size)) return problem;
  std::string path = std::string(getenv("STAND_IN_KERNELS")) + "/" + Digest(image, size) + ".so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    std::fprintf(stderr, "stand-in: %s\n", dlerror());
    return CUDA_ERROR_NOT_FOUND;
  }
  Log("load");
  *module = reinterpret_cast<CUmodule>(new Module{library, {}});
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
  FinishAll();
  delete reinterpret_cast<Module*>(module);
  return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  std::lock_guard guard(mutex);
  auto* owner = reinterpret_cast<Module*>(module);
  auto find = [&](const char* what) { return dlsym(owner->library, (std::string(what) + name).c_str()); };
  void* run = find("stand_in_run_");
  if (!run) return CUDA_ERROR_NOT_FOUND;
  owner->kernels.push_back({name, reinterpret_cast<void (*)(const int64_t*, void**)>(run), static_cast<const char*>(find("stand_in_kinds_")),
                            *static_cast<const uint8_t* const*>(find("stand_in_bytes_"))});
  *function = reinterpret_cast<CUfunction>(&owner->kernels.back());
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > 227 << 10) return CUDA_ERROR_INVALID_VALUE;
  reinterpret_cast<Kernel*>(function)->dynamic_shared = value;
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  std::lock_guard guard(mutex);
  auto* kernel = reinterpret_cast<Kernel*>(function);
  if (extra) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult problem = Check(*kernel, *config, parameters)) return problem;
  std::vector<std::vector<char>> values;  // of this moment: the caller may change them when this is done
  for (size_t i = 0; kernel->kinds[i]; ++i) {
    const char* value = static_cast<const char*>(parameters[i]);
    values.emplace_back(value, value + kernel->bytes[i]);
  }
  std::vector<int64_t> sizes{config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX, config->blockDimY, config->blockDimZ, config->sharedMemBytes};
  Log("launch " + kernel->name);
  bool taken = Enqueue(StreamOf(config->hStream), [kernel, sizes, values] { Run(*kernel, sizes, values); });
  return taken ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_INVALID_VALUE;
}

}  // extern "C"
