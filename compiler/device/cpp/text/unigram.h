// Unigram models: of all ways to cut a piece into tokens, the one whose scores have the largest sum.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace tensorwright {

class Unigram : public TokenModel {
 public:
  // Throws Error where tokens and scores do not fit together.
  explicit Unigram(Reader* reader);

  void Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const override;

 private:
  // The last token of the best way to a place of a text.
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
