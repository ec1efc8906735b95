// Converts text to tokens and back, the same as the tokenizers library.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "decoder.h"
#include "model.h"
#include "reader.h"
#include "steps.h"

namespace tensorwright {

// Tokens that are found in a text before it is split; the longest one at a position wins.
class AddedTokens {
 public:
  struct Token {
    uint32_t number;
    std::u32string text;
    bool takes_left, takes_right;  // whether it includes adjacent white space
  };

  void Add(Token token);
  // Appends the parts between the tokens to `pieces`, and the token after each of them to `tokens`, kNone at the end.
  void Cut(const Piece& piece, const CharacterSet& spaces, std::vector<Piece>* pieces, std::vector<uint32_t>* tokens) const;
  static constexpr uint32_t kNone = 0xFFFFFFFF;

 private:
  const Token* At(const std::u32string& text, size_t place) const;

  std::unordered_map<char32_t, std::vector<Token>> by_first_;  // longest first
};

class Tokenizer {
 public:
  explicit Tokenizer(Reader* reader);

  // Tokens of a text, which must be valid UTF-8; `special`: with those that the model expects around it. If there are
  // more than `most`, the last ones of the text are dropped.
  std::vector<int64_t> Encode(const std::string& text, bool special, size_t most = std::numeric_limits<size_t>::max()) const;

  // The text of tokens without special ones.
  std::string Decode(const std::vector<int64_t>& tokens) const;

 private:
  struct Named {
    std::string text;
    bool special;
  };

  // Tokens in addition to the model's, and those put around texts.
  struct Added {
    explicit Added(Reader* reader);

    AddedTokens of_text, of_normalized_text;
    std::unordered_map<uint32_t, Named> names;
    std::vector<uint32_t> before, after;
  };

  void EncodePiece(const Piece& piece, std::vector<uint32_t>* tokens) const;

  CharacterSet spaces_;
  Steps normalizers_, pre_tokenizers_;
  std::unique_ptr<TokenModel> model_;
  Added added_;
  Decoder decoder_;
};

}  // namespace tensorwright
