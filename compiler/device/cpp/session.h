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
  // `capacity`: rows of the states if that size is dynamic; 0 if it is not, or for unlimited growing states. The module
  // must outlive the session. Throws Error if a size is invalid or missing.
  Session(Module* module, int64_t capacity);

  // Positions of a run's inputs and outputs among the module's.
  const std::vector<size_t>& inputs() const { return inputs_; }
  const std::vector<size_t>& outputs() const { return outputs_; }

  // The number of rows of the states in use.
  int64_t length() const { return length_; }

  // Runs one step. Throws Error if the inputs are invalid, or the states have no room; nothing was written then.
  std::vector<ffi::Tensor> Run(const std::vector<ffi::Tensor>& inputs);

  // Resets to the initial states.
  void Reset();

  // Discards the last rows. Throws Error if fewer are in use, or a state's old values are gone.
  void Rewind(int64_t count);

  // Another session in the same state, with its own states.
  Session Fork() const;

  // Save the states to a file of the Python package (runtime/session_file.py), and load them. Load throws Error unless
  // it is a complete file of a session of this module, with room for its rows.
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
  Sizes sizes_;                          // known sizes of the states' symbolic dimensions
  std::map<size_t, ffi::Tensor> states_;  // by index of the input; empty before the first run
};

}  // namespace tensorwright
