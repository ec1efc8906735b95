// Bounds the memory that TVM's pool keeps between runs of different sizes, as compiler/runtime/library.py does: the pool
// keeps the activations of every size that ran (a batch of 7 rows does not take those of 8), until it is cleared as a whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tensors.h"

namespace tensorwright {

// The sizes that a virtual machine ran last, and whose code it runs.
class LastSizes {
 public:
  LastSizes();
  LastSizes(const LastSizes& other) : code_(other.code_) {}  // of another machine of the same code

 private:
  friend class RunOfSizes;
  int64_t code_;
  std::vector<int64_t> sizes_;
};

// A run, from its construction to `Ended`; one that failed does not end.
class RunOfSizes {
 public:
  RunOfSizes(LastSizes* last, const std::vector<ffi::Tensor>& inputs);

  // Clears the pool when the sizes that ran since the last time have left too much in it.
  void Ended();

 private:
  LastSizes* last_;
  std::vector<int64_t> sizes_;
  bool is_first_;  // of its sizes
  size_t before_ = 0;
};

}  // namespace tensorwright
