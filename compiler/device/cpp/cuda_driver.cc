#include "cuda_driver.h"

#include <dlfcn.h>

#include "error.h"

namespace tensorwright {
namespace {

constexpr int kOldestDriver = 13000;  // supported by CUDA 13's runtime
constexpr int kMajor = 75, kMinor = 76;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
constexpr int kNoDevice = 100, kLibraryMismatch = 803, kUnsupported = 804;  // CUresult
const char* const kDriver = "libcuda.so.1";
const char* const kUpdate = "install NVIDIA's driver 580 or newer";

template <typename Function>
Function DriverFunction(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (!found) throw Error(std::string(kDriver) + " has no function " + name, kUpdate);
  return reinterpret_cast<Function>(found);
}

void* Driver() {
  void* library = dlopen(kDriver, RTLD_NOW | RTLD_GLOBAL);
  if (library) return library;
  const char* reason = dlerror();
  throw Error(std::string("NVIDIA's driver cannot be loaded: ") + (reason ? reason : kDriver),
              "install the driver; in a container, let it see the GPU (docker run --gpus all)");
}

[[noreturn]] void DriverFailed(void* library, int result) {
  if (result == kNoDevice) {
    throw Error("NVIDIA's driver finds no GPU", "see what nvidia-smi says, and what CUDA_VISIBLE_DEVICES hides");
  }
  const char* text = nullptr;
  DriverFunction<int (*)(int, const char**)>(library, "cuGetErrorString")(result, &text);
  std::string what = std::string("NVIDIA's driver could not be started: ") + (text ? text : "error") + " (" + std::to_string(result) + ")";
  bool mixed = result == kLibraryMismatch || result == kUnsupported;
  throw Error(what, mixed ? "libcuda.so.1 and the kernel's module must be of one version: restart the machine after an update of the driver" : "see what nvidia-smi says");
}

}  // namespace

std::string CapabilityText(int compute_capability) { return std::to_string(compute_capability / 10) + "." + std::to_string(compute_capability % 10); }

std::vector<CudaDeviceInfo> CudaDevices() {
  void* library = Driver();
  auto check = [&](int result) {
    if (result != 0) DriverFailed(library, result);
  };
  int version = 0, count = 0;
  check(DriverFunction<int (*)(int*)>(library, "cuDriverGetVersion")(&version));
  if (version < kOldestDriver) {
    throw Error("NVIDIA's driver is too old: it supports CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) +
                    ", and CUDA 13.0 is needed", kUpdate);
  }
  check(DriverFunction<int (*)(unsigned)>(library, "cuInit")(0));
  check(DriverFunction<int (*)(int*)>(library, "cuDeviceGetCount")(&count));
  if (count == 0) DriverFailed(library, kNoDevice);
  auto attribute = DriverFunction<int (*)(int*, int, int)>(library, "cuDeviceGetAttribute");
  auto name_of = DriverFunction<int (*)(char*, int, int)>(library, "cuDeviceGetName");
  auto memory_of = DriverFunction<int (*)(size_t*, int)>(library, "cuDeviceTotalMem_v2");
  std::vector<CudaDeviceInfo> devices;
  for (int device = 0; device < count; ++device) {
    char name[256] = "";
    int major = 0, minor = 0;
    size_t memory = 0;
    check(name_of(name, sizeof name - 1, device));
    check(attribute(&major, kMajor, device)), check(attribute(&minor, kMinor, device)), check(memory_of(&memory, device));
    devices.push_back({name, 10 * major + minor, memory});
  }
  return devices;
}

}  // namespace tensorwright
