// Elements of tensors as numbers, and comparison of a tensor with a summary of the expected one.
#pragma once

#include <string>
#include <vector>

#include "checked_json.h"
#include "tensors.h"

namespace tensorwright::pack {

// Writes numbers as elements of a tensor in this processor's memory, rounded to nearest, ties to even.
class Writer {
 public:
  explicit Writer(const DLTensor& tensor);
  int64_t size() const { return size_; }
  void Put(int64_t index, double value);

 private:
  const DLTensor& tensor_;
  int64_t size_;
};

// What is kept of a tensor: its root mean square, its largest magnitude, how many elements are NaN, and elements
// at places drawn by a seed (all of them in their order where they are few).
struct Summary {
  double rms = 0, largest = 0, not_numbers = 0;
  std::vector<double> samples;

  static constexpr size_t kHead = 3;
  std::vector<double> Packed() const;
  static Summary Unpacked(const double* values, size_t samples);
};

Summary Summarize(const DLTensor& tensor, uint64_t seed, int64_t samples);

// How much two tensors may differ. A difference is within the tolerance where it is at most absolute + relative *
// max(1, largest) everywhere, or, where `rms` is above 0, its root mean square over the samples is at most rms times that
// of the tensor, and no single one more than `kPeak` times as much.
struct Tolerance {
  double relative = 0, absolute = 0, rms = 0;
  static Tolerance Parse(const JsonValue& value);
};

struct Difference {
  bool right = false;
  double largest = 0, rms = 0;  // of the samples; rms relative to the tensor's
  std::string words;            // what is wrong; empty where nothing is
};

Difference Compare(const Summary& found, const Summary& expected, const Tolerance& tolerance);

}  // namespace tensorwright::pack
