// Bounds the memory that TVM's pool keeps between runs of different sizes, like compiler/runtime/library.py: the pool
// keeps the activations of every size that ran (a batch of 7 rows does not reuse those of 8), until it is cleared as a
// whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensors.h"

namespace tensorwright {

// The last sizes that a virtual machine ran, and the code that it runs.
class LastSizes {
 public:
  LastSizes();
  LastSizes(const LastSizes& other) : code_(other.code_) {}  // for another machine with the same code

 private:
  friend class RunOfSizes;
  int64_t code_;
  std::vector<int64_t> sizes_;
};

// A run, from its construction to `Ended`; failed runs do not end.
class RunOfSizes {
 public:
  RunOfSizes(LastSizes* last, const std::vector<ffi::Tensor>& inputs);

  // Clears the pool if the sizes that ran since the last time have left too much memory in it.
  void Ended();

 private:
  LastSizes* last_;
  std::vector<int64_t> sizes_;
  bool is_first_;  // whether it is the first run of its sizes
  size_t before_ = 0;
};

}  // namespace tensorwright
