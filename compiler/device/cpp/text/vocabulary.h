// The tokens of a model by number and by text.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "reader.h"

namespace tensorwright {

constexpr uint32_t kNoToken = 0xFFFFFFFF;

class Vocabulary {
 public:
  // Throws Error if a named token does not exist.
  explicit Vocabulary(Reader* reader);

  // kNoToken if there is none.
  uint32_t TokenOf(const std::string& text) const;

  // Calls `found(token, end)` for each token at position `begin` of a text, the shortest first.
  template <typename Found>
  void Prefixes(const std::string& text, size_t begin, Found found) const {
    size_t first = 0, last = by_text_.size();  // tokens that share the bytes from `begin` to `at`
    for (size_t at = begin; at < text.size() && first < last; ++at) {
      size_t depth = at - begin;
      int byte = static_cast<uint8_t>(text[at]);
      first = PlaceOf(first, last, depth, byte), last = PlaceOf(first, last, depth, byte + 1);
      if (first < last && texts_[by_text_[first]].size() == depth + 1) found(by_text_[first], at + 1);
    }
  }

  // Number of token ids; the texts of unused ones are empty.
  size_t size() const { return texts_.size(); }
  const std::string& TextOf(uint32_t token) const { return texts_[token]; }
  bool Has(uint32_t token) const { return token < texts_.size(); }

 private:
  // The first token from `first` to `last` whose byte at `depth` is at least `byte`; the end of a text is less than any
  // byte.
  size_t PlaceOf(size_t first, size_t last, size_t depth, int byte) const;

  std::vector<std::string> texts_;
  std::vector<uint32_t> by_text_;  // tokens in the order of the bytes of their texts
};

// The tokens of single bytes, used for characters that are not in a vocabulary.
class FallbackBytes {
 public:
  FallbackBytes(Reader* reader, const Vocabulary& vocabulary);
  // False, with nothing added, if a byte has no token.
  bool Add(const std::string& text, std::vector<uint32_t>* tokens) const;

 private:
  std::vector<uint32_t> bytes_;  // none, or 256
};

}  // namespace tensorwright
