// The states of one stream or sequence, and runs of a module that update them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "module.h"

namespace tensorwright {

class Session {
 public:
  // `capacity`: rows of the states where that size is dynamic; 0 where it is not, or for no limit of states that
  // grow. The module must outlive the session. Throws Error where a size does not fit or is missing.
  Session(Module* module, int64_t capacity);

  // Places among the module's inputs and outputs of what a run takes and gives.
  const std::vector<size_t>& inputs() const { return inputs_; }
  const std::vector<size_t>& outputs() const { return outputs_; }

  // The number of rows of the states in use.
  int64_t length() const { return length_; }

  // One step. Throws Error where the inputs do not fit, or the states have no room; nothing was written then.
  std::vector<ffi::Tensor> Run(const std::vector<ffi::Tensor>& inputs);

  // Resets to the initial states.
  void Reset();

  // Forgets the last rows. Throws Error where fewer are in use, or a state's old values are gone.
  void Rewind(int64_t count);

  // Another session in the same state, with states of its own.
  Session Fork() const;

  // The states as a file of the Python package (runtime/session_file.py), and back. Load throws Error unless it is a
  // whole file of a session of this module, with room for its rows.
  std::string Save() const;
  void Load(Span file, const std::string& origin);

 private:
  const Artifact& artifact() const { return module_->artifact(); }
  bool HasRows(const State& state) const;
  int64_t Capacity(const Sizes& sizes) const;
  Sizes StateSizes(const Sizes& sizes, const std::string& what) const;
  Sizes Told(const std::vector<ffi::Tensor>& inputs) const;
  int64_t LengthAfter(const Sizes& told) const;
  void Allocate(const Sizes& sizes);

  Module* module_;
  int64_t capacity_;
  int64_t length_ = 0;
  std::vector<size_t> inputs_, outputs_;
  Sizes sizes_;                          // of the states' symbolic dimensions, as far as they are known
  std::map<size_t, ffi::Tensor> states_;  // by the place of the input; empty before the first run
};

}  // namespace tensorwright
