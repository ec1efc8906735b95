#include "steps.h"

#include <array>

#include "character_steps.h"
#include "normal.h"
#include "pattern.h"

namespace tensorwright {
namespace {

// The same as in native_tokenizer/parts.py.
enum class StepKind : uint32_t { kPrepend = 1, kReplace, kNormalize, kStrip, kSplit, kByteLevel, kMetaspace, kMapped, kSpaced, kCharsmap };
enum class Behavior : uint32_t { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
enum class Prepended : uint32_t { kNever, kFirst, kAlways };

class Prepend : public Step {
 public:
  explicit Prepend(Reader* reader) : prefix_(FromUtf8(reader->Text(), "a prefix")) {}
  std::vector<Piece> operator()(const Piece& piece) const override { return {{prefix_ + piece.text, piece.first}}; }

 private:
  std::u32string prefix_;
};

class Replace : public Step {
 public:
  explicit Replace(Reader* reader) : pattern_(reader), content_(FromUtf8(reader->Text(), "a replacement")) {}
  std::vector<Piece> operator()(const Piece& piece) const override {
    std::u32string text;
    bool begins = piece.first;
    for (const Match& match : pattern_.Cut(piece.text)) {
      text += match.matches ? content_ : piece.text.substr(match.begin, match.end - match.begin);
      // As in the library, a replacement takes the position of the last character it replaces.
      begins = begins && !(match.matches && match.begin == 0 && (content_.empty() || match.end > 1));
    }
    return {{text, begins}};
  }

 private:
  Pattern pattern_;
  std::u32string content_;
};

class Normalize : public Step {
 public:
  explicit Normalize(Reader* reader) : normalizer_(reader) {}
  std::vector<Piece> operator()(const Piece& piece) const override { return {{normalizer_(piece.text), piece.first}}; }

 private:
  Normalizer normalizer_;
};

class Strip : public Step {
 public:
  Strip(Reader* reader, const CharacterSet& spaces) : left_(reader->Truth()), right_(reader->Truth()), spaces_(spaces) {}
  std::vector<Piece> operator()(const Piece& piece) const override {
    size_t begin = 0, end = piece.text.size();
    while (left_ && begin < end && spaces_.Has(piece.text[begin])) ++begin;
    while (right_ && end > begin && spaces_.Has(piece.text[end - 1])) --end;
    return {{piece.text.substr(begin, end - begin), piece.first && begin == 0}};
  }

 private:
  bool left_, right_;
  CharacterSet spaces_;
};

// Ranges of a text according to a split's treatment of matches.
std::vector<Match> Arranged(const std::vector<Match>& matches, Behavior behavior) {
  std::vector<Match> found;
  bool before = false;
  if (behavior == Behavior::kMergedWithNext) {
    for (auto match = matches.rbegin(); match != matches.rend(); ++match) {
      if (match->matches && !before && !found.empty()) found.back().begin = match->begin;
      else found.push_back(*match);
      before = match->matches;
    }
    return {found.rbegin(), found.rend()};
  }
  for (const Match& match : matches) {
    bool joins = (behavior == Behavior::kContiguous && match.matches == before) || (behavior == Behavior::kMergedWithPrevious && match.matches && !before);
    if (joins && !found.empty()) found.back().end = match.end;
    else if (behavior != Behavior::kRemoved || !match.matches) found.push_back(match);
    before = match.matches;
  }
  return found;
}

std::vector<Piece> Pieces(const Piece& piece, const std::vector<Match>& ranges) {
  std::vector<Piece> pieces;
  for (const Match& range : ranges) pieces.push_back({piece.text.substr(range.begin, range.end - range.begin), piece.first && range.begin == 0});
  return pieces;
}

class Split : public Step {
 public:
  explicit Split(Reader* reader) : pattern_(reader), behavior_(static_cast<Behavior>(reader->Number())), inverts_(reader->Truth()) {}
  std::vector<Piece> operator()(const Piece& piece) const override {
    std::vector<Match> matches = pattern_.Cut(piece.text);
    for (Match& match : matches) match.matches = match.matches != inverts_;
    return Pieces(piece, Arranged(matches, behavior_));
  }

 private:
  Pattern pattern_;
  Behavior behavior_;
  bool inverts_;
};

class ByteLevel : public Step {
 public:
  explicit ByteLevel(Reader* reader) : adds_space_(reader->Truth()) {
    if (reader->Truth()) words_ = std::make_unique<Pattern>(reader);
  }
  std::vector<Piece> operator()(const Piece& piece) const override {
    Piece whole = piece;
    if (adds_space_ && whole.text[0] != U' ') whole.text.insert(0, 1, U' ');
    std::vector<Piece> pieces = words_ ? Pieces(whole, words_->Cut(whole.text)) : std::vector<Piece>{whole};
    for (Piece& each : pieces) {
      std::u32string bytes;
      for (char byte : ToUtf8(each.text)) bytes += CharacterOfByte(static_cast<uint8_t>(byte));
      each.text = bytes;
    }
    return pieces;
  }

 private:
  bool adds_space_;
  std::unique_ptr<Pattern> words_;
};

class Metaspace : public Step {
 public:
  explicit Metaspace(Reader* reader)
      : space_(FromUtf8(reader->Text(), "a replacement")), prepended_(static_cast<Prepended>(reader->Number())), splits_(reader->Truth()) {
    if (space_.size() != 1) throw Error("the tokenizer of the program is damaged");
  }
  std::vector<Piece> operator()(const Piece& piece) const override {
    Piece whole = piece;
    for (char32_t& each : whole.text) each = each == U' ' ? space_[0] : each;
    bool due = prepended_ == Prepended::kAlways || (prepended_ == Prepended::kFirst && piece.first);
    if (due && whole.text[0] != space_[0]) whole.text.insert(0, space_);
    if (!splits_) return {whole};
    std::vector<Match> ranges;
    for (size_t i = 0; i < whole.text.size(); ++i) {
      bool is_space = whole.text[i] == space_[0];
      if (!is_space && !ranges.empty() && !ranges.back().matches) ranges.back().end = i + 1;
      else ranges.push_back({i, i + 1, is_space});
    }
    return Pieces(whole, Arranged(ranges, Behavior::kMergedWithNext));
  }

 private:
  std::u32string space_;
  Prepended prepended_;
  bool splits_;
};

std::unique_ptr<Step> NextStep(Reader* reader, const CharacterSet& spaces) {
  switch (static_cast<StepKind>(reader->Number())) {
    case StepKind::kPrepend: return std::make_unique<Prepend>(reader);
    case StepKind::kReplace: return std::make_unique<Replace>(reader);
    case StepKind::kNormalize: return std::make_unique<Normalize>(reader);
    case StepKind::kStrip: return std::make_unique<Strip>(reader, spaces);
    case StepKind::kSplit: return std::make_unique<Split>(reader);
    case StepKind::kByteLevel: return std::make_unique<ByteLevel>(reader);
    case StepKind::kMetaspace: return std::make_unique<Metaspace>(reader);
    case StepKind::kMapped: return ReadMapped(reader);
    case StepKind::kSpaced: return ReadSpaced(reader);
    case StepKind::kCharsmap: return ReadCharsmap(reader);
    default: throw Error("the tokenizer of the program is damaged");
  }
}

bool IsPrintable(int byte) { return (byte >= 33 && byte < 127) || (byte >= 161 && byte < 173) || byte >= 174; }

// Bytes that are not printable are encoded as the characters from U+0100 on, in order.
struct ByteTable {
  std::array<char32_t, 256> characters;
  std::array<int, 512> bytes;

  ByteTable() {
    bytes.fill(-1);
    char32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      characters[static_cast<size_t>(byte)] = IsPrintable(byte) ? static_cast<char32_t>(byte) : next++;
      bytes[characters[static_cast<size_t>(byte)]] = byte;
    }
  }
};

const ByteTable& Table() {
  static const ByteTable table;
  return table;
}

}  // namespace

Steps::Steps(Reader* reader, const CharacterSet& spaces) {
  for (uint32_t count = reader->Number(); count; --count) steps_.push_back(NextStep(reader, spaces));
}

std::vector<Piece> Steps::operator()(std::vector<Piece> pieces) const {
  for (const auto& step : steps_) {
    std::vector<Piece> next;
    for (const Piece& piece : pieces) {
      for (Piece& each : (*step)(piece)) {
        if (!each.text.empty()) next.push_back(std::move(each));
      }
    }
    pieces = std::move(next);
  }
  return pieces;
}

char32_t CharacterOfByte(uint8_t byte) { return Table().characters[byte]; }

int ByteOfCharacter(char32_t character) { return character < 512 ? Table().bytes[character] : -1; }

}  // namespace tensorwright
