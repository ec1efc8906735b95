// Byte pair encoding: pairs of tokens are merged in a fixed order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "reader.h"

namespace tensorwright {

class PairEncoding {
 public:
  // Throws Error where tokens are named that there are not.
  explicit PairEncoding(Reader* reader);

  // Appends the tokens of one piece of a text.
  void Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const;

  // How many numbers of tokens there are; the texts of those that are not in use are empty.
  size_t size() const { return texts_.size(); }
  const std::string& TextOf(uint32_t token) const { return texts_[token]; }

 private:
  struct Merged;

  // kNone where there is none.
  uint32_t TokenOf(const std::string& text) const;
  const uint32_t* MergeOf(uint32_t left, uint32_t right) const;
  std::vector<uint32_t> Characters(const std::u32string& piece) const;
  bool AddBytes(const std::string& character, std::vector<uint32_t>* tokens) const;

  static constexpr uint32_t kNone = 0xFFFFFFFF;

  std::vector<std::string> texts_;
  std::vector<uint32_t> by_text_;  // tokens in the order of the bytes of their texts
  std::vector<uint32_t> merges_;   // left, right, rank, merged, in the order of left and right
  uint32_t unknown_;
  bool fuses_unknown_, falls_back_to_bytes_, takes_whole_words_;
  std::vector<uint32_t> bytes_;
};

}  // namespace tensorwright
