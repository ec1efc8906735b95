// Queries NVIDIA's driver, libcuda.so.1, for devices. It is loaded on first use.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tensorwright {

struct CudaDeviceInfo {
  std::string name;
  int compute_capability;  // 10 major + minor
  uint64_t memory;         // bytes
};

// "9.0"
std::string CapabilityText(int compute_capability);

// The devices, in the driver's order. Throws Error, with the remedy, without a driver, with one that is too old for
// CUDA 13, or without a device.
std::vector<CudaDeviceInfo> CudaDevices();

}  // namespace tensorwright
