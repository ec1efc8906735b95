// The device that runs a module's kernels: the CPU, or a GPU with its own memory.
#pragma once

#include <tvm/ffi/function.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "manifest.h"
#include "tensors.h"

namespace tensorwright {

constexpr int kPooledAllocator = 2;  // TVM's constant

// Milliseconds of each run on a GPU whose inputs are already there: by CUDA events, and by the CPU's clock until the
// results are computed.
struct DeviceTimes {
  std::vector<double> device, host;
};

// The device's own clock.
class DeviceClock {
 public:
  virtual ~DeviceClock() = default;
  // Records an event after all work started so far; returns its number.
  virtual size_t Mark() = 0;
  // Milliseconds between two events; waits for them.
  virtual double Between(size_t first, size_t second) = 0;
  // Discards all events.
  virtual void Reset() = 0;
};

// The CPU, which uses tensors in place.
class Device {
 public:
  virtual ~Device() = default;

  // "NVIDIA H100 80GB HBM3"; empty for the CPU.
  virtual std::string Name() const { return ""; }

  // Type, number and allocator of each device of a virtual machine, as required by `vm_initialization`.
  virtual std::vector<int> Places() const;

  // Moves a tensor to memory that kernels can read. `old`, a tensor of the same element type that an earlier call
  // returned and that is no longer read, may be overwritten.
  virtual ffi::Tensor ToDevice(const ffi::Tensor& tensor, const ffi::Tensor* old) const;

  // Moves tensors to CPU memory, once they are computed.
  virtual std::vector<ffi::Tensor> ToHost(const std::vector<ffi::Tensor>& tensors) const { return tensors; }

  // Throws an Error for a failure of the runtime whose cause is known.
  virtual void Explain(const std::string& failure) const;

  // Null for the CPU.
  virtual std::unique_ptr<DeviceClock> Clock() const { return nullptr; }

  // Times `run`, which starts kernels and does not wait for them; `graph`: captured and launched as one CUDA graph.
  // Throws Error if it cannot be captured, and for the CPU.
  virtual DeviceTimes Time(const std::function<void()>& run, int runs, bool graph) const;
};

// The device that a module needs. Throws Error with the requirement that this machine does not meet.
std::unique_ptr<Device> DeviceFor(const Manifest& manifest, uint64_t parameter_bytes);

// The GPUs of this machine, as JSON: a list of objects with "name", "compute_capability" (10 major + minor) and
// "memory" (bytes); and why modules cannot use them, "" if they can. Determined in a separate process, since a process
// that has used the driver cannot be forked.
struct DeviceList {
  std::string json = "[]", problem;
};
DeviceList DescribeDevices();

// Registers the GPUs with TVM in this process. Throws Error if there are none.
void LoadDevices();

}  // namespace tensorwright
