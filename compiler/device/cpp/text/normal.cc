#include "normal.h"

#include <algorithm>

namespace tensorwright {
namespace {

// Hangul syllables: a leading consonant, a vowel and an optional trailing consonant.
constexpr char32_t kSyllable = 0xAC00, kLeading = 0x1100, kVowel = 0x1161, kTrailing = 0x11A7;
constexpr char32_t kLeadings = 19, kVowels = 21, kTrailings = 28;

uint64_t KeyOf(char32_t first, char32_t second) { return uint64_t{first} << 32 | second; }

}  // namespace

Normalizer::Normalizer(Reader* reader) : composes_(reader->Truth()) {
  std::vector<uint32_t> codes = reader->Numbers();
  std::vector<std::string> texts = reader->Texts();
  std::vector<uint32_t> classes = reader->Numbers(), compositions = reader->Numbers();
  if (codes.size() != texts.size() || classes.size() % 2 || compositions.size() % 3) throw Error("the tokenizer of the program is damaged");
  for (size_t i = 0; i < codes.size(); ++i) decompositions_.emplace(codes[i], FromUtf8(texts[i], "a decomposition"));
  for (size_t i = 0; i < classes.size(); i += 2) classes_.emplace(classes[i], classes[i + 1]);
  for (size_t i = 0; i < compositions.size(); i += 3) compositions_.emplace(KeyOf(compositions[i], compositions[i + 1]), compositions[i + 2]);
}

uint32_t Normalizer::ClassOf(char32_t character) const {
  auto found = classes_.find(character);
  return found == classes_.end() ? 0 : found->second;
}

void Normalizer::Decompose(char32_t character, std::u32string* to) const {
  if (character >= kSyllable && character < kSyllable + kLeadings * kVowels * kTrailings) {
    char32_t place = character - kSyllable, trailing = place % kTrailings;
    *to += kLeading + place / (kVowels * kTrailings);
    *to += kVowel + place / kTrailings % kVowels;
    if (trailing) *to += kTrailing + trailing;
    return;
  }
  auto found = decompositions_.find(character);
  if (found == decompositions_.end()) *to += character;
  else *to += found->second;
}

// Sorts the marks after a character by class; equal ones keep their order.
void Normalizer::Sort(std::u32string* text) const {
  for (size_t begin = 0; begin < text->size();) {
    size_t end = begin;
    while (end < text->size() && ClassOf((*text)[end])) ++end;
    std::stable_sort(text->begin() + static_cast<ptrdiff_t>(begin), text->begin() + static_cast<ptrdiff_t>(end),
                     [&](char32_t left, char32_t right) { return ClassOf(left) < ClassOf(right); });
    begin = end + 1;
  }
}

char32_t Normalizer::Composed(char32_t first, char32_t second) const {
  if (first >= kLeading && first < kLeading + kLeadings && second >= kVowel && second < kVowel + kVowels) {
    return kSyllable + ((first - kLeading) * kVowels + (second - kVowel)) * kTrailings;
  }
  bool open = first >= kSyllable && first < kSyllable + kLeadings * kVowels * kTrailings && (first - kSyllable) % kTrailings == 0;
  if (open && second > kTrailing && second < kTrailing + kTrailings) return first + (second - kTrailing);
  auto found = compositions_.find(KeyOf(first, second));
  return found == compositions_.end() ? 0 : found->second;
}

std::u32string Normalizer::Compose(const std::u32string& text) const {
  std::u32string made;
  size_t starter = std::u32string::npos;
  uint32_t last = 0;  // class of the previous character
  for (char32_t character : text) {
    uint32_t now = ClassOf(character);
    bool adjacent = starter != std::u32string::npos && made.size() == starter + 1;
    if (starter != std::u32string::npos && (adjacent || last < now)) {
      if (char32_t whole = Composed(made[starter], character)) {
        made[starter] = whole;
        continue;
      }
    }
    if (now == 0) starter = made.size();
    made += character, last = now;
  }
  return made;
}

std::u32string Normalizer::operator()(const std::u32string& text) const {
  if (std::all_of(text.begin(), text.end(), [](char32_t each) { return each < 128; })) return text;
  std::u32string parts;
  for (char32_t each : text) Decompose(each, &parts);
  Sort(&parts);
  return composes_ ? Compose(parts) : parts;
}

}  // namespace tensorwright
