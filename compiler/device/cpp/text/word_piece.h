// WordPiece: the longest token that a word begins with, then the longest one that continues it. WordLevel: whole words.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model.h"

namespace tensorwright {

class WordPiece : public TokenModel {
 public:
  explicit WordPiece(Reader* reader);

  void Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const override;

 private:
  // Appends the tokens of a word; false if they do not reach its end.
  bool Cut(const std::string& word, std::vector<uint32_t>* tokens) const;

  uint32_t unknown_;
  std::string continuing_;  // prefix of tokens inside a word
  size_t longest_;          // characters; longer words are unknown
};

class WordLevel : public TokenModel {
 public:
  explicit WordLevel(Reader* reader) : TokenModel(reader), unknown_(ReadUnknown(reader)) {}

  void Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const override;

 private:
  uint32_t unknown_;
};

}  // namespace tensorwright
