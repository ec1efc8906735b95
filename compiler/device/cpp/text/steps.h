// Normalizers and pre-tokenizers: what is done to a text before its pieces become tokens.
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
  // Changes the pieces, or cuts them; empty ones are dropped by the caller.
  virtual std::vector<Piece> operator()(const Piece& piece) const = 0;
};

// Steps in the order in which they are done.
class Steps {
 public:
  // Throws Error for a step that is not known. `spaces`: the characters of white space.
  Steps(Reader* reader, const CharacterSet& spaces);
  std::vector<Piece> operator()(std::vector<Piece> pieces) const;

 private:
  std::vector<std::unique_ptr<Step>> steps_;
};

// Character that byte-level tokens write for a byte, and back; -1 for characters that stand for none.
char32_t CharacterOfByte(uint8_t byte);
int ByteOfCharacter(char32_t character);

}  // namespace tensorwright
