// Choice of the next token, the same as in generation/sampling.py of the Python package.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <vector>

#include "random.h"

namespace tensorwright {

struct SamplingOptions {
  double temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1;
  uint64_t top_k = 0;
  uint64_t seed = 0;
};

// Tokens that are never chosen, and those that are not chosen as the first token.
struct Suppressed {
  std::vector<uint32_t> always, first;
};

class Sampler {
 public:
  // `seen`: tokens of the prompt, counted by the repetition penalty.
  Sampler(const SamplingOptions& options, const std::vector<int64_t>& seen, Suppressed suppressed);

  // From one logit per token of the vocabulary. Throws Error if any is not finite.
  int64_t Choose(const float* logits, size_t count);

 private:
  int64_t Drawn(const std::vector<float>& scores);

  SamplingOptions options_;
  std::set<int64_t> seen_;
  Suppressed suppressed_;
  bool is_first_ = true;
  std::optional<Random> random_;
};

}  // namespace tensorwright
