#include "stream.h"

#include <algorithm>

#include "reader.h"

namespace tensorwright {
namespace {

const std::string kBroken = "\xEF\xBF\xBD";
constexpr size_t kMaxCharacter = 4;  // bytes, and therefore tokens, of one character

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Number of bytes at the end of a text that are the beginning of a stop text.
size_t Overlap(const std::string& text, const std::string& stop) {
  for (size_t size = std::min(text.size(), stop.size() - 1); size; --size) {
    if (stop.compare(0, size, text, text.size() - size, size) == 0) return size;
  }
  return 0;
}

}  // namespace

TextStream::TextStream(Decode decode, const std::vector<int64_t>& before) : decode_(std::move(decode)) {
  size_t count = std::min(before.size(), kMaxCharacter);
  tokens_.assign(before.end() - static_cast<ptrdiff_t>(count), before.end());
  given_ = count;
}

std::string TextStream::Add(int64_t token) {
  tokens_.push_back(token);
  return Next(false);
}

std::string TextStream::Next(bool final) {
  auto from = tokens_.begin() + static_cast<ptrdiff_t>(begin_);
  std::string before = decode_({from, tokens_.begin() + static_cast<ptrdiff_t>(given_)}), now = decode_({from, tokens_.end()});
  size_t waiting = tokens_.size() - given_;
  bool incomplete = EndsWith(now, kBroken) && waiting < kMaxCharacter;
  if (!waiting || (incomplete && !final)) return "";
  std::u32string text = FromUtf8(now, "the text");
  text.erase(0, FromUtf8(before, "the text").size());
  if (!text.empty()) begin_ = given_;  // after only special tokens, a decoder would treat the next token as the beginning
  given_ = tokens_.size();
  return ToUtf8(text);
}

std::string StopTexts::Add(const std::string& piece) {
  if (found_) return "";
  std::string text = held_ + piece;
  size_t first = std::string::npos, held = 0;
  for (const std::string& stop : stops_) first = std::min(first, text.find(stop));
  if (first != std::string::npos) {
    found_ = true, held_.clear();
    return text.substr(0, first);
  }
  for (const std::string& stop : stops_) held = std::max(held, Overlap(text, stop));
  held_ = text.substr(text.size() - held);
  return text.substr(0, text.size() - held);
}

std::string StopTexts::End() {
  std::string text;
  std::swap(text, held_);
  return text;
}

}  // namespace tensorwright
