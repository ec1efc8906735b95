#include "character_steps.h"

#include <unordered_map>

namespace tensorwright {
namespace {

class Mapped : public Step {
 public:
  explicit Mapped(Reader* reader) {
    std::vector<uint32_t> codes = reader->Numbers();
    std::vector<std::string> texts = reader->Texts();
    if (codes.size() != texts.size()) throw Error("the tokenizer of the program is damaged");
    for (size_t i = 0; i < codes.size(); ++i) texts_.emplace(codes[i], FromUtf8(texts[i], "a character"));
  }
  std::vector<Piece> operator()(const Piece& piece) const override {
    std::u32string text;
    for (char32_t each : piece.text) {
      auto found = texts_.find(each);
      if (found == texts_.end()) text += each;
      else text += found->second;
    }
    return {{text, piece.first}};
  }

 private:
  std::unordered_map<char32_t, std::u32string> texts_;
};

class Spaced : public Step {
 public:
  explicit Spaced(Reader* reader) : characters_(reader->Numbers()) {}
  std::vector<Piece> operator()(const Piece& piece) const override {
    std::u32string text;
    for (char32_t each : piece.text) {
      if (characters_.Has(each)) text += {U' ', each, U' '};
      else text += each;
    }
    return {{text, piece.first}};
  }

 private:
  CharacterSet characters_;
};

// As in the tokenizers library: a character with its marks is replaced by the replacement of its shortest prefix if it
// has less than six bytes, otherwise character by character. Sequences of Hangul, flags and emoji are longer.
class Charsmap : public Step {
 public:
  explicit Charsmap(Reader* reader) : extends_(reader->Numbers()), prepends_(reader->Numbers()), controls_(reader->Numbers()) {
    std::vector<std::string> keys = reader->Texts(), texts = reader->Texts();
    if (keys.size() != texts.size()) throw Error("the tokenizer of the program is damaged");
    for (size_t i = 0; i < keys.size(); ++i) rules_.emplace(FromUtf8(keys[i], "a rule"), FromUtf8(texts[i], "a rule"));
  }
  std::vector<Piece> operator()(const Piece& piece) const override {
    const std::u32string& text = piece.text;
    std::u32string made;
    for (size_t at = 0, end = 0; at < text.size(); at = end) {
      end = EndOf(text, at);
      const std::u32string* whole = ToUtf8(text.substr(at, end - at)).size() < kLargeCluster ? Replacement(text, at, end) : nullptr;
      if (whole) {
        made += *whole;
        continue;
      }
      for (; at < end; ++at) {
        const std::u32string* one = Replacement(text, at, at + 1);
        if (one) made += *one;
        else made += text[at];
      }
    }
    return {{made, piece.first}};
  }

 private:
  static constexpr size_t kLargeCluster = 6;

  // The end of a character with its marks.
  size_t EndOf(const std::u32string& text, size_t at) const {
    size_t end = at + 1;
    if (text[at] == U'\r' && end < text.size() && text[end] == U'\n') return end + 1;
    auto joins = [&] { return extends_.Has(text[end]) || (prepends_.Has(text[end - 1]) && !controls_.Has(text[end])); };
    while (end < text.size() && !controls_.Has(text[end - 1]) && joins()) ++end;
    return end;
  }

  // Replacement of the shortest prefix that has a rule; null if there is none.
  const std::u32string* Replacement(const std::u32string& text, size_t at, size_t end) const {
    for (size_t size = 1; size <= end - at; ++size) {
      auto found = rules_.find(text.substr(at, size));
      if (found != rules_.end()) return &found->second;
    }
    return nullptr;
  }

  CharacterSet extends_, prepends_, controls_;
  std::unordered_map<std::u32string, std::u32string> rules_;
};

}  // namespace

std::unique_ptr<Step> ReadMapped(Reader* reader) { return std::make_unique<Mapped>(reader); }
std::unique_ptr<Step> ReadSpaced(Reader* reader) { return std::make_unique<Spaced>(reader); }
std::unique_ptr<Step> ReadCharsmap(Reader* reader) { return std::make_unique<Charsmap>(reader); }

}  // namespace tensorwright
