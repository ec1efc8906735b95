// A module, loaded and ready to run.
#pragma once

#include <tvm/ffi/extra/module.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "artifact.h"
#include "device.h"
#include "parameter_store.h"
#include "pool_bound.h"
#include "requirements.h"
#include "tensors.h"

namespace tensorwright {

class Module {
 public:
  explicit Module(std::shared_ptr<Artifact> artifact);

  // A copy for another thread: it shares code and parameters, and has a virtual machine of its own.
  std::unique_ptr<Module> Shared() const;

  // Number of threads of a run. Throws Error unless it is a number of threads that the machine serves.
  void SetThreads(int threads);

  const Artifact& artifact() const { return *artifact_; }

  // Inputs in the module's order; throws Error unless they are what the manifest requires.
  std::vector<ffi::Tensor> Run(const std::vector<ffi::Tensor>& inputs);

  // The stored example, run and compared: the largest absolute difference. Throws Error where one is too large.
  double Verify();

  // Milliseconds of each of `runs` runs, after `warm_up` runs that are not counted; those of a graphics processor with the
  // copies of inputs and outputs.
  std::vector<double> Measure(const std::vector<ffi::Tensor>& inputs, int runs, int warm_up);

  // "NVIDIA H100 80GB HBM3"; empty for modules that run on the processor. They have none of the times below.
  std::string DeviceName() const { return device_->Name(); }

  // Seconds of runs without copies, after warm-up; `graph`: captured as one CUDA graph. Throws Error where the run cannot be
  // captured, or its replay gives other results.
  DeviceTimes MeasureDevice(const std::vector<ffi::Tensor>& inputs, int runs, bool graph);

  // The calls of a run in their order, each with the median of its milliseconds on the device.
  std::vector<std::pair<std::string, double>> MeasureKernels(const std::vector<ffi::Tensor>& inputs, int runs);

  // The stored example, or zeros with every symbolic dimension 1; states as at the beginning of a session.
  std::vector<ffi::Tensor> ExampleInputs() const;

  // Runs on inputs whose states lie where kernels read them, and writes to those; the outputs lie there too.
  std::vector<ffi::Tensor> Step(const std::vector<ffi::Tensor>& inputs);

  // Moves a tensor to where kernels read it, and tensors to the processor's memory.
  ffi::Tensor Placed(const ffi::Tensor& tensor) const { return device_->ToDevice(tensor, nullptr); }
  std::vector<ffi::Tensor> ToHost(const std::vector<ffi::Tensor>& tensors) const { return device_->ToHost(tensors); }

  // A tensor of the processor with memory of its own.
  static ffi::Tensor Copy(const ffi::Tensor& tensor);

  // The first value of a state or the position, for sizes of its symbolic dimensions. Throws Error where one is not known.
  ffi::Tensor FirstValue(size_t input, const Sizes& sizes) const;

 private:
  Module(const Module& other);
  void CheckArity() const;
  void Expand();
  ffi::Tensor Share(const ffi::Tensor& parameter, std::shared_ptr<Artifact> file);
  void Place(std::vector<ffi::Tensor> inputs);
  ffi::Any Call(const std::vector<ffi::Tensor>& placed) const;
  std::vector<ffi::Tensor> Outputs(const ffi::Any& result) const;
  [[noreturn]] void Failed(const std::string& failure) const;

  // Result of `work`; exceptions of TVM in it become an Error.
  template <typename Work>
  auto Explained(Work work) const {
    try {
      return work();
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      Failed(error.what());
    }
  }

  std::shared_ptr<Artifact> artifact_;
  InputChecker checker_;
  std::shared_ptr<Device> device_;
  std::vector<std::shared_ptr<const SharedBytes>> shared_;  // what parameters lie in, where kernels read them as they are
  std::vector<ffi::Tensor> parameters_, placed_;  // where kernels read them; `placed_`: the inputs of the last run
  std::vector<NamedTensor> reference_inputs_, reference_outputs_, initial_states_;
  std::optional<ffi::Module> executable_, machine_;
  ffi::Function main_;
  int threads_ = 1;
  LastSizes last_sizes_;
};

// Percentile of sorted or unsorted values; fraction in [0, 1].
double Percentile(std::vector<double> values, double fraction);

}  // namespace tensorwright
