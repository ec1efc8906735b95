// The random numbers of numpy.random.default_rng(seed): PCG64, seeded by numpy's SeedSequence.
#pragma once

#include <cstdint>

namespace tensorwright {

class Random {
 public:
  explicit Random(uint64_t seed);
  // In [0, 1).
  double Next();

 private:
  struct Wide {
    uint64_t high, low;
  };

  static Wide Sum(Wide left, Wide right);
  static Wide Product(Wide left, Wide right);
  void Advance();

  Wide state_, increment_;
};

}  // namespace tensorwright
