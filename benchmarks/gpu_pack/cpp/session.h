// An entry's module, loaded and ready to run.
#pragma once

#include <tvm/ffi/extra/module.h>

#include <functional>
#include <memory>
#include <optional>

#include "device.h"
#include "entry.h"

namespace tensorwright::pack {

// The tensors of a call of a kernel.
struct KernelCall {
  const std::string& name;
  const Kernel& kernel;
  std::vector<ffi::Tensor> tensors;
  std::function<void()> again;  // starts it once more on the same tensors
};

class Session {
 public:
  // Makes the parameters and loads the module. Throws Error, which says what is missing on this machine.
  explicit Session(const Entry& entry);

  const Device& device() const { return *device_; }

  // Places the inputs of a case; later runs take them.
  void Place(const Case& given);

  // Starts a run; its results, in the device's memory, may not be computed yet. Those of the run before are given back
  // first, since a graph may not allocate.
  void Start();

  // The results of the last run, once they are computed.
  std::vector<ffi::Tensor> Results();

  // Starts a run in which `each` is called instead of each kernel, and has to start it.
  void Instrumented(const std::function<void(const KernelCall&)>& each);

 private:
  const Entry& entry_;
  std::unique_ptr<Device> device_;
  std::optional<ffi::Module> executable_, machine_;
  std::vector<ffi::Tensor> parameters_, placed_;
  ffi::Function main_;
  ffi::Any result_;
};

}  // namespace tensorwright::pack
