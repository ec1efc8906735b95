// Checks a model's requirements on its inputs before anything runs.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "manifest.h"
#include "tensors.h"

namespace tensorwright {

// Checks inputs against a manifest: element types, shapes, symbolic dimensions, and the requirements, whose rules and
// messages are the same as in the Python package (runtime/requirements.py): change both, and the table of cases that
// tests both.
class InputChecker {
 public:
  // `manifest` must outlive the checker. Throws Error for requirements that are not formulas of the inputs' dimensions,
  // and for indices that are not an integer input.
  explicit InputChecker(const Manifest& manifest);

  // Throws Error if the inputs, in the module's order, are invalid.
  void Check(const std::vector<ffi::Tensor>& inputs);

 private:
  void CheckRelations(const Sizes& sizes) const;

  const Manifest& manifest_;
  std::vector<size_t> places_;                       // positions of the inputs with indices
  std::optional<Sizes> good_;                        // the sizes that last passed the check
  std::vector<std::pair<int64_t, int64_t>> ranges_;  // and the ranges of the indices: begin and end
};

}  // namespace tensorwright
