// Byte pair encoding: pairs of tokens are merged in a fixed order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace tensorwright {

class PairEncoding : public TokenModel {
 public:
  // Throws Error if a named token does not exist.
  explicit PairEncoding(Reader* reader);

  void Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const override;

 private:
  struct Merged;

  const uint32_t* MergeOf(uint32_t left, uint32_t right) const;
  std::vector<uint32_t> Characters(const std::u32string& piece) const;

  std::vector<uint32_t> merges_;  // (left, right, rank, merged), ordered by left and right
  uint32_t unknown_;
  bool fuses_unknown_, takes_whole_words_;
  std::string continuing_, ending_;  // prefix of tokens inside a word, and suffix of those at its end
  FallbackBytes bytes_;
};

}  // namespace tensorwright
