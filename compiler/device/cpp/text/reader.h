// Reads the output of native_tokenizer/writer.py of the Python package: little-endian, lengths before contents.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../file.h"

namespace tensorwright {

// Throws Error if anything is missing.
class Reader {
 public:
  explicit Reader(Span content) : content_(content) {}

  uint32_t Number();
  bool Truth() { return Number() != 0; }
  std::vector<uint32_t> Numbers();
  std::vector<double> Doubles();
  std::string Text();
  std::vector<std::string> Texts();
  bool AtEnd() const { return at_ == content_.size; }

 private:
  const uint8_t* Take(size_t bytes);

  Span content_;
  size_t at_ = 0;
};

// Sets of code points, as ascending ranges.
class CharacterSet {
 public:
  // `edges`: the first and last of each range. Throws Error unless they are ascending.
  explicit CharacterSet(std::vector<uint32_t> edges);
  bool Has(char32_t character) const;

 private:
  std::vector<uint32_t> edges_;
  uint64_t ascii_[2] = {};
};

// The text must be valid UTF-8; otherwise `Error` names `what`.
std::u32string FromUtf8(const std::string& text, const std::string& what);
std::string ToUtf8(const std::u32string& text);
std::string ToUtf8(char32_t character);

// Number of bytes of the character at `at`, or 0 if none begins there; `wrong` is then the number of bytes replaced
// together.
size_t CharacterBytes(const std::string& text, size_t at, size_t* wrong);

// Bytes decoded as UTF-8, with U+FFFD for invalid ones.
std::string Replaced(const std::string& bytes);

}  // namespace tensorwright
