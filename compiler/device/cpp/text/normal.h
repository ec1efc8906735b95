// Unicode normalization by tables, which native_tokenizer/normalizers.py of the Python package writes.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "reader.h"

namespace tensorwright {

class Normalizer {
 public:
  explicit Normalizer(Reader* reader);
  std::u32string operator()(const std::u32string& text) const;

 private:
  uint32_t ClassOf(char32_t character) const;
  void Decompose(char32_t character, std::u32string* to) const;
  void Sort(std::u32string* text) const;
  // 0 if there is no composition.
  char32_t Composed(char32_t first, char32_t second) const;
  std::u32string Compose(const std::u32string& text) const;

  bool composes_;
  std::unordered_map<char32_t, std::u32string> decompositions_;
  std::unordered_map<char32_t, uint32_t> classes_;
  std::unordered_map<uint64_t, char32_t> compositions_;
};

}  // namespace tensorwright
