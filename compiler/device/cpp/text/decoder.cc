#include "decoder.h"

#include <memory>
#include <utility>

#include "pattern.h"
#include "steps.h"

namespace tensorwright {
namespace {

using Tokens = std::vector<std::string>;

// The same as in native_tokenizer/parts.py.
enum class Undo : uint32_t { kByteLevel = 1, kReplace, kByteFallback, kFuse, kStrip, kMetaspace, kWordPiece, kWordEnds };

std::string Joined(const Tokens& tokens, const char* between = "") {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) text += (i ? between : "") + tokens[i];
  return text;
}

std::u32string Wide(const std::string& token) { return FromUtf8(token, "a token"); }

// A token with other characters than those for bytes is unchanged.
Tokens FromByteLevel(const Tokens& tokens) {
  std::string text;
  for (const std::string& token : tokens) {
    std::string bytes;
    for (char32_t each : Wide(token)) {
      int byte = ByteOfCharacter(each);
      if (byte < 0) {
        bytes = token;
        break;
      }
      bytes += static_cast<char>(byte);
    }
    text += bytes;
  }
  return {Replaced(text)};
}

int HexDigit(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  char lower = static_cast<char>(digit | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

// The byte of "<0xE2>"; -1 for other tokens.
int FallbackByte(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
  int high = HexDigit(token[3]), low = HexDigit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

Tokens FromFallback(const Tokens& tokens) {
  Tokens found;
  std::string bytes;
  auto flush = [&] {
    if (Replaced(bytes) == bytes) found.push_back(bytes);
    else found.insert(found.end(), bytes.size(), "\xEF\xBF\xBD");
    bytes.clear();
  };
  for (const std::string& token : tokens) {
    int byte = FallbackByte(token);
    if (byte >= 0) {
      bytes += static_cast<char>(byte);
      continue;
    }
    if (!bytes.empty()) flush();
    found.push_back(token);
  }
  if (!bytes.empty()) flush();
  return found;
}

std::string Stripped(const std::string& token, char32_t content, size_t start, size_t stop) {
  std::u32string text = Wide(token);
  size_t begin = 0, end = text.size();
  while (begin < start && begin < end && text[begin] == content) ++begin;
  for (size_t i = 0; i < stop && end > begin && text[end - 1] == content; ++i) --end;
  return ToUtf8(text.substr(begin, end - begin));
}

std::string WithReplacements(const Pattern& pattern, const std::string& content, const std::string& token) {
  std::u32string text = Wide(token);
  std::string made;
  for (const Match& match : pattern.Cut(text)) made += match.matches ? content : ToUtf8(text.substr(match.begin, match.end - match.begin));
  return made;
}

// Drops the spaces of the first token if one was prepended to the text.
Tokens FromMetaspace(Tokens tokens, char32_t space, bool prepended) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::u32string text;
    for (char32_t each : Wide(tokens[i])) {
      if (each != space) text += each;
      else if (i || !prepended) text += U' ';
    }
    tokens[i] = ToUtf8(text);
  }
  return tokens;
}

std::string WithAll(std::string text, const std::string& old, const std::string& now) {
  for (size_t at = 0; !old.empty() && (at = text.find(old, at)) != std::string::npos; at += now.size()) text.replace(at, old.size(), now);
  return text;
}

// Removes the spaces before English punctuation and contractions.
std::string CleanedUp(std::string text) {
  static constexpr const char* kRules[][2] = {{" .", "."},    {" ?", "?"},     {" !", "!"},            {" ,", ","},   {" ' ", "'"},   {" n't", "n't"},
                                              {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& rule : kRules) text = WithAll(std::move(text), rule[0], rule[1]);
  return text;
}

// Inserts a space before each token that does not continue a word.
Tokens FromWordPieces(Tokens tokens, const std::string& prefix, bool cleans) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i && tokens[i].compare(0, prefix.size(), prefix) == 0) tokens[i].erase(0, prefix.size());
    else if (i) tokens[i].insert(0, " ");
    if (cleans) tokens[i] = CleanedUp(tokens[i]);
  }
  return tokens;
}

// Replaces the end of each word but the last by a space.
Tokens FromWordEnds(Tokens tokens, const std::string& end) {
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = WithAll(tokens[i], end, i + 1 == tokens.size() ? "" : " ");
  return tokens;
}

char32_t OneCharacter(Reader* reader) {
  std::u32string text = Wide(reader->Text());
  if (text.size() != 1) throw Error("the tokenizer of the program is damaged");
  return text[0];
}

template <typename Change>
Tokens Each(Tokens tokens, Change change) {
  for (std::string& token : tokens) token = change(token);
  return tokens;
}

}  // namespace

Decoder::Step Decoder::NextStep(Reader* reader) {
  switch (static_cast<Undo>(reader->Number())) {
    case Undo::kByteLevel:
      return [](Tokens tokens) { return FromByteLevel(tokens); };
    case Undo::kByteFallback:
      return [](Tokens tokens) { return FromFallback(tokens); };
    case Undo::kFuse:
      return [](Tokens tokens) { return Tokens{Joined(tokens)}; };
    case Undo::kReplace: {
      auto pattern = std::make_shared<Pattern>(reader);
      std::string content = reader->Text();
      return [=](Tokens tokens) { return Each(std::move(tokens), [&](const std::string& token) { return WithReplacements(*pattern, content, token); }); };
    }
    case Undo::kStrip: {
      char32_t content = OneCharacter(reader);
      size_t start = reader->Number(), stop = reader->Number();
      return [=](Tokens tokens) { return Each(std::move(tokens), [&](const std::string& token) { return Stripped(token, content, start, stop); }); };
    }
    case Undo::kMetaspace: {
      char32_t space = OneCharacter(reader);
      bool prepended = reader->Number() != 0;
      return [=](Tokens tokens) { return FromMetaspace(std::move(tokens), space, prepended); };
    }
    case Undo::kWordPiece: {
      std::string prefix = reader->Text();
      bool cleans = reader->Truth();
      return [=](Tokens tokens) { return FromWordPieces(std::move(tokens), prefix, cleans); };
    }
    case Undo::kWordEnds: {
      std::string end = reader->Text();
      return [=](Tokens tokens) { return FromWordEnds(std::move(tokens), end); };
    }
    default:
      throw Error("the tokenizer of the program is damaged");
  }
}

Decoder::Decoder(Reader* reader) : separates_(reader->Truth()) {
  for (uint32_t count = reader->Number(); count; --count) steps_.push_back(NextStep(reader));
}

std::string Decoder::operator()(std::vector<std::string> tokens) const {
  for (const Step& step : steps_) tokens = step(std::move(tokens));
  return Joined(tokens, separates_ ? " " : "");
}

}  // namespace tensorwright
