#include "word_piece.h"

namespace tensorwright {
namespace {

uint32_t Known(uint32_t unknown, const std::u32string& word) {
  if (unknown == kNoToken) throw Error("the tokenizer has no token for " + ToUtf8(word));
  return unknown;
}

}  // namespace

WordPiece::WordPiece(Reader* reader) : TokenModel(reader), unknown_(ReadUnknown(reader)), continuing_(reader->Text()), longest_(reader->Number()) {}

bool WordPiece::Cut(const std::string& word, std::vector<uint32_t>* tokens) const {
  for (size_t at = 0; at < word.size();) {
    bool continues = at && !continuing_.empty();
    std::string rest = continues ? continuing_ + word.substr(at) : "";
    size_t prefix = continues ? continuing_.size() : at, length = 0;
    uint32_t longest = kNoToken;
    vocabulary().Prefixes(continues ? rest : word, continues ? 0 : at, [&](uint32_t token, size_t end) {
      if (end > prefix) longest = token, length = end - prefix;
    });
    if (longest == kNoToken) return false;
    tokens->push_back(longest);
    at += length;
  }
  return true;
}

void WordPiece::Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const {
  size_t before = tokens->size();
  if (piece.size() <= longest_ && Cut(ToUtf8(piece), tokens)) return;
  tokens->resize(before);
  tokens->push_back(Known(unknown_, piece));
}

void WordLevel::Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const {
  uint32_t token = vocabulary().TokenOf(ToUtf8(piece));
  tokens->push_back(token == kNoToken ? Known(unknown_, piece) : token);
}

}  // namespace tensorwright
