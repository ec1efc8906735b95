#include "language.h"

#include <algorithm>

namespace tensorwright {
namespace {

std::vector<Frame> ReadFrames(Reader* reader) {
  std::vector<Frame> frames;
  for (uint32_t count = reader->Number(); count; --count) {
    std::vector<std::string> texts = reader->Texts();
    std::vector<uint32_t> strips = reader->Numbers();
    if (texts.size() != strips.size() + 1) throw Error("the chat template of the program is damaged");
    frames.push_back({std::move(texts), std::move(strips)});
  }
  return frames;
}

std::string Stripped(const std::string& message, const CharacterSet& spaces) {
  std::u32string text = FromUtf8(message, "the prompt");
  size_t begin = 0, end = text.size();
  while (begin < end && spaces.Has(text[begin])) ++begin;
  while (end > begin && spaces.Has(text[end - 1])) --end;
  return ToUtf8(text.substr(begin, end - begin));
}

}  // namespace

Language::Language(Span content) : Language(Reader(content)) {}

Language::Language(Reader reader)
    : context_(reader.Number()),
      vocabulary_(reader.Number()),
      ends_(reader.Numbers()),
      suppressed_{reader.Numbers(), reader.Numbers()},
      stripped_(reader.Numbers()),
      frames_(ReadFrames(&reader)),
      tokenizer_(&reader) {
  if (!reader.AtEnd()) throw Error("the tokenizer of the program is damaged");
}

std::vector<int64_t> Language::MessagesOf(const std::vector<std::string>& messages) const {
  for (const Frame& frame : frames_) {
    if (frame.strips.size() != messages.size()) continue;
    std::string text = frame.texts[0];
    for (size_t i = 0; i < messages.size(); ++i) text += (frame.strips[i] ? Stripped(messages[i], stripped_) : messages[i]) + frame.texts[i + 1];
    return tokenizer_.Encode(text, false);
  }
  throw Error("the chat template of the model takes no system message", "leave --system out, or give --raw");
}

bool Language::Ends(int64_t token) const { return std::find(ends_.begin(), ends_.end(), static_cast<uint32_t>(token)) != ends_.end(); }

}  // namespace tensorwright
