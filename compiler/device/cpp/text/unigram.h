// Unigram models: of all splits of a piece into tokens, the one with the largest sum of scores.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace tensorwright {

class Unigram : public TokenModel {
 public:
  // Throws Error if tokens and scores are inconsistent.
  explicit Unigram(Reader* reader);

  void Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const override;

 private:
  // The last token of the best split up to a position of a text.
  struct Best {
    double score = 0;
    size_t begin = kNowhere;
    uint32_t token = kNoToken;
  };

  std::vector<Best> BestWays(const std::string& text) const;
  static constexpr size_t kNowhere = static_cast<size_t>(-1);

  std::vector<double> scores_;
  double unknown_score_;
  uint32_t unknown_;
  FallbackBytes bytes_;
};

}  // namespace tensorwright
