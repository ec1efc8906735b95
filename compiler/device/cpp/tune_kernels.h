// Measures the candidates of one kernel on the device.
#pragma once

#include <functional>
#include <memory>
#include <random>

#include "device.h"
#include "tune_plan.h"

namespace tensorwright {

class TuneKernels {
 public:
  // Starts the device. Throws Error.
  explicit TuneKernels(const TunePlan& plan);

  std::string DeviceName() const { return device_->Name(); }

  // Prepares a task: its library, arguments, and the default's results. Throws Error.
  void Open(size_t task);

  // Checks and times a candidate of the task; a wrong or failed run is a result with a status other than "ok".
  TuneResult Measure(size_t candidate);

  // Times candidates alternately, one result each.
  std::vector<TuneResult> Compare(const std::vector<size_t>& candidates);

 private:
  void Run(size_t candidate);
  void Poison();
  std::vector<ffi::Tensor> Results() const;
  double Once(size_t candidate);
  std::vector<double> Time(size_t candidate, double once, int samples);
  TuneResult Made(size_t candidate) const;

  const TunePlan& plan_;
  std::unique_ptr<Device> device_;
  const TuneTask* task_ = nullptr;
  size_t index_ = 0;
  std::unique_ptr<ffi::Module> library_;
  std::vector<ffi::Tensor> arguments_, poison_, expected_;
};

}  // namespace tensorwright
