// Normalizers and pre-tokenizers: applied to a text before its pieces become tokens.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "reader.h"

namespace tensorwright {

// A part of a text, and whether the text begins with it.
struct Piece {
  std::u32string text;
  bool first;
};

class Step {
 public:
  virtual ~Step() = default;
  // Changes the pieces, or splits them; the caller drops empty ones.
  virtual std::vector<Piece> operator()(const Piece& piece) const = 0;
};

// Steps in execution order.
class Steps {
 public:
  // Throws Error for an unknown step. `spaces`: the white space characters.
  Steps(Reader* reader, const CharacterSet& spaces);
  std::vector<Piece> operator()(std::vector<Piece> pieces) const;

 private:
  std::vector<std::unique_ptr<Step>> steps_;
};

// The character that represents a byte in byte-level tokens, and the reverse; -1 for characters that represent none.
char32_t CharacterOfByte(uint8_t byte);
int ByteOfCharacter(char32_t character);

}  // namespace tensorwright
