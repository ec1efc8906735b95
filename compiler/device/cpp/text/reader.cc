#include "reader.h"

#include <algorithm>
#include <cstring>

namespace tensorwright {

const uint8_t* Reader::Take(size_t bytes) {
  if (bytes > content_.size - at_) throw Error("the tokenizer of the program is damaged", "write the program again");
  at_ += bytes;
  return content_.data + at_ - bytes;
}

uint32_t Reader::Number() {
  const uint8_t* bytes = Take(4);
  return uint32_t{bytes[0]} | uint32_t{bytes[1]} << 8 | uint32_t{bytes[2]} << 16 | uint32_t{bytes[3]} << 24;
}

std::vector<uint32_t> Reader::Numbers() {
  size_t count = Number();
  const uint8_t* bytes = Take(count > content_.size ? content_.size + 1 : count * 4);
  std::vector<uint32_t> numbers(count);
  if (count) std::memcpy(numbers.data(), bytes, count * 4);  // all supported processors are little-endian
  return numbers;
}

std::vector<double> Reader::Doubles() {
  std::vector<uint32_t> halves = Numbers();
  if (halves.size() % 2) throw Error("the tokenizer of the program is damaged");
  std::vector<double> values(halves.size() / 2);
  if (!values.empty()) std::memcpy(values.data(), halves.data(), values.size() * sizeof(double));
  return values;
}

std::string Reader::Text() {
  size_t size = Number();
  return std::string(reinterpret_cast<const char*>(Take(size)), size);
}

std::vector<std::string> Reader::Texts() {
  std::vector<std::string> texts;
  std::vector<uint32_t> sizes = Numbers();
  texts.reserve(sizes.size());
  for (uint32_t size : sizes) texts.emplace_back(reinterpret_cast<const char*>(Take(size)), size);
  return texts;
}

CharacterSet::CharacterSet(std::vector<uint32_t> edges) : edges_(std::move(edges)) {
  if (edges_.size() % 2 || !std::is_sorted(edges_.begin(), edges_.end())) throw Error("the tokenizer of the program is damaged");
  for (uint32_t code = 0; code < 128; ++code) {
    auto range = std::upper_bound(edges_.begin(), edges_.end(), code);
    size_t place = static_cast<size_t>(range - edges_.begin());
    bool has = place % 2 == 1 || (place && edges_[place - 1] == code);
    ascii_[code / 64] |= uint64_t{has} << code % 64;
  }
}

bool CharacterSet::Has(char32_t character) const {
  if (character < 128) return ascii_[character / 64] >> character % 64 & 1;
  auto after = std::upper_bound(edges_.begin(), edges_.end(), static_cast<uint32_t>(character));
  size_t place = static_cast<size_t>(after - edges_.begin());
  return place % 2 == 1 || (place && edges_[place - 1] == character);
}

size_t CharacterBytes(const std::string& text, size_t at, size_t* wrong) {
  auto byte = [&](size_t place) { return place < text.size() ? static_cast<uint8_t>(text[place]) : uint8_t{0}; };
  uint8_t first = byte(at);
  *wrong = 1;
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  size_t size = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  // No overlong forms, no surrogates, nothing above U+10FFFF.
  uint8_t least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80, most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < size; ++i) {
    if (at + i >= text.size() || byte(at + i) < least || byte(at + i) > most) return 0;
    least = 0x80, most = 0xBF, *wrong = i + 1;
  }
  return size;
}

std::u32string FromUtf8(const std::string& text, const std::string& what) {
  std::u32string characters;
  characters.reserve(text.size());
  for (size_t at = 0, wrong = 0; at < text.size();) {
    size_t size = CharacterBytes(text, at, &wrong);
    if (!size) throw Error(what + " is not valid UTF-8 at byte " + std::to_string(at));
    char32_t code = static_cast<uint8_t>(text[at]);
    if (size > 1) code &= 0xFFu >> (size + 1);
    for (size_t i = 1; i < size; ++i) code = code << 6 | (static_cast<uint8_t>(text[at + i]) & 0x3F);
    characters += code;
    at += size;
  }
  return characters;
}

std::string ToUtf8(char32_t code) {
  if (code < 0x80) return {static_cast<char>(code)};
  std::string text;
  int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  text += static_cast<char>((0xFF00u >> (more + 1) & 0xFF) | code >> 6 * more);
  while (more--) text += static_cast<char>(0x80 | (code >> 6 * more & 0x3F));
  return text;
}

std::string ToUtf8(const std::u32string& characters) {
  std::string text;
  for (char32_t character : characters) text += ToUtf8(character);
  return text;
}

std::string Replaced(const std::string& bytes) {
  std::string text;
  for (size_t at = 0, wrong = 0; at < bytes.size();) {
    size_t size = CharacterBytes(bytes, at, &wrong);
    text += size ? bytes.substr(at, size) : "\xEF\xBF\xBD";
    at += size ? size : wrong;
  }
  return text;
}

}  // namespace tensorwright
