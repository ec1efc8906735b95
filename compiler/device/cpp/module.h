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

  // A copy for another thread: it shares code and parameters, and has its own virtual machine.
  std::unique_ptr<Module> Shared() const;

  // Number of threads per run. Throws Error unless this machine supports it.
  void SetThreads(int threads);

  const Artifact& artifact() const { return *artifact_; }

  // Inputs in the module's order; throws Error unless they meet the manifest's requirements.
  std::vector<ffi::Tensor> Run(const std::vector<ffi::Tensor>& inputs);

  // Runs and compares the stored example: the largest absolute difference. Throws Error if one is too large.
  double Verify();

  // Milliseconds of each of `runs` runs, after `warm_up` runs that are not counted; on a GPU including the copies of
  // inputs and outputs.
  std::vector<double> Measure(const std::vector<ffi::Tensor>& inputs, int runs, int warm_up);

  // "NVIDIA H100 80GB HBM3"; empty for modules that run on the CPU, which have none of the times below.
  std::string DeviceName() const { return device_->Name(); }

  // Seconds of runs without copies, after warm-up; `graph`: captured as one CUDA graph. Throws Error if the run cannot
  // be captured, or its replay has other results.
  DeviceTimes MeasureDevice(const std::vector<ffi::Tensor>& inputs, int runs, bool graph);

  // The calls of a run in order, each with the median of its milliseconds on the device.
  std::vector<std::pair<std::string, double>> MeasureKernels(const std::vector<ffi::Tensor>& inputs, int runs);

  // The stored example, or zeros with every symbolic dimension 1; states as at the beginning of a session.
  std::vector<ffi::Tensor> ExampleInputs() const;

  // Runs on inputs whose states are in memory that kernels can read, and updates those; the outputs are there, too.
  std::vector<ffi::Tensor> Step(const std::vector<ffi::Tensor>& inputs);

  // Move a tensor to memory that kernels can read, and tensors to CPU memory.
  ffi::Tensor Placed(const ffi::Tensor& tensor) const { return device_->ToDevice(tensor, nullptr); }
  std::vector<ffi::Tensor> ToHost(const std::vector<ffi::Tensor>& tensors) const { return device_->ToHost(tensors); }

  // A CPU tensor with its own memory.
  static ffi::Tensor Copy(const ffi::Tensor& tensor);

  // The first value of a state or the position, for sizes of its symbolic dimensions. Throws Error if one is unknown.
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

  // Result of `work`, with TVM's exceptions converted to Error.
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
  std::vector<std::shared_ptr<const SharedBytes>> shared_;  // memory of parameters that kernels read in place
  std::vector<ffi::Tensor> parameters_, placed_;  // in memory that kernels can read; `placed_`: the inputs of the last run
  std::vector<NamedTensor> reference_inputs_, reference_outputs_, initial_states_;
  std::optional<ffi::Module> executable_, machine_;
  ffi::Function main_;
  int threads_ = 1;
  LastSizes last_sizes_;
};

// Percentile of sorted or unsorted values; fraction in [0, 1].
double Percentile(std::vector<double> values, double fraction);

}  // namespace tensorwright
