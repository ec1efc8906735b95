#include "vocabulary.h"

namespace tensorwright {

Vocabulary::Vocabulary(Reader* reader) : texts_(reader->Texts()), by_text_(reader->Numbers()) {
  if (!std::all_of(by_text_.begin(), by_text_.end(), [&](uint32_t token) { return Has(token); })) throw Error("the tokenizer of the program is damaged");
}

uint32_t Vocabulary::TokenOf(const std::string& text) const {
  auto place = std::lower_bound(by_text_.begin(), by_text_.end(), text, [&](uint32_t token, const std::string& wanted) { return texts_[token] < wanted; });
  return place != by_text_.end() && texts_[*place] == text ? *place : kNoToken;
}

size_t Vocabulary::PlaceOf(size_t first, size_t last, size_t depth, int byte) const {
  auto begin = by_text_.begin();
  auto before = [&](uint32_t token, int wanted) {
    const std::string& text = texts_[token];
    return (text.size() > depth ? static_cast<uint8_t>(text[depth]) : -1) < wanted;
  };
  return static_cast<size_t>(std::lower_bound(begin + static_cast<ptrdiff_t>(first), begin + static_cast<ptrdiff_t>(last), byte, before) - begin);
}

FallbackBytes::FallbackBytes(Reader* reader, const Vocabulary& vocabulary) : bytes_(reader->Numbers()) {
  bool fits = bytes_.empty() || bytes_.size() == 256;
  for (uint32_t token : bytes_) fits = fits && (token == kNoToken || vocabulary.Has(token));
  if (!fits) throw Error("the tokenizer of the program is damaged");
}

bool FallbackBytes::Add(const std::string& text, std::vector<uint32_t>* tokens) const {
  if (bytes_.empty()) return false;
  for (char byte : text) {
    if (bytes_[static_cast<uint8_t>(byte)] == kNoToken) return false;
  }
  for (char byte : text) tokens->push_back(bytes_[static_cast<uint8_t>(byte)]);
  return true;
}

}  // namespace tensorwright
