// A module ready to run.
#pragma once

#include <tvm/ffi/extra/module.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "artifact.h"
#include "requirements.h"
#include "tensors.h"

namespace tensorwright {

class Module {
 public:
  explicit Module(std::shared_ptr<Artifact> artifact);

  const Artifact& artifact() const { return *artifact_; }

  // Inputs in the module's order; throws Error unless they are what the manifest requires.
  std::vector<ffi::Tensor> Run(const std::vector<ffi::Tensor>& inputs);

  // The stored example, run and compared: the largest absolute difference. Throws Error where one is too large.
  double Verify();

  // Milliseconds of each of `runs` runs, after `warm_up` runs that are not counted.
  std::vector<double> Measure(const std::vector<ffi::Tensor>& inputs, int runs, int warm_up);

  // The stored example, or zeros with every symbolic dimension 1.
  std::vector<ffi::Tensor> ExampleInputs() const;

 private:
  void CheckArity() const;
  void Expand();
  std::vector<ffi::Tensor> Outputs(const ffi::Any& result) const;

  std::shared_ptr<Artifact> artifact_;
  InputChecker checker_;
  std::vector<ffi::Tensor> parameters_;
  std::vector<NamedTensor> reference_inputs_, reference_outputs_;
  std::optional<ffi::Module> executable_, machine_;
  ffi::Function main_;
};

// Of sorted or unsorted values; fraction in [0, 1].
double Percentile(std::vector<double> values, double fraction);

}  // namespace tensorwright
