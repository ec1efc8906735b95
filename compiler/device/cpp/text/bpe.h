// Byte pair encoding: pairs of tokens are merged in a fixed order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace tensorwright {

class PairEncoding : public TokenModel {
 public:
  // Throws Error where tokens are named that there are not.
  explicit PairEncoding(Reader* reader);

  void Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const override;

 private:
  struct Merged;

  const uint32_t* MergeOf(uint32_t left, uint32_t right) const;
  std::vector<uint32_t> Characters(const std::u32string& piece) const;

  std::vector<uint32_t> merges_;  // left, right, rank, merged, in the order of left and right
  uint32_t unknown_;
  bool fuses_unknown_, takes_whole_words_;
  std::string continuing_, ending_;  // what tokens within a word begin with, and those at its end end with
  FallbackBytes bytes_;
};

}  // namespace tensorwright
