// Description of the language model, stored with the module by compiler/generation/text_program.py of the Python
// package.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "reader.h"
#include "sampler.h"
#include "tokenizer.h"

namespace tensorwright {

// A chat template, instantiated for messages of one form: the text before, between and after them.
struct Frame {
  std::vector<std::string> texts;
  std::vector<uint32_t> strips;  // whether the white space around a message is stripped
};

class Language {
 public:
  explicit Language(Span content);

  // The tokens of a plain text, or of a message with an optional system message before it. Throws Error if the chat
  // template does not support that, and for text that is not valid UTF-8.
  std::vector<int64_t> PromptOf(const std::string& text) const { return tokenizer_.Encode(text, true); }
  std::vector<int64_t> MessagesOf(const std::vector<std::string>& messages) const;
  std::string Decode(const std::vector<int64_t>& tokens) const { return tokenizer_.Decode(tokens); }

  bool has_template() const { return !frames_.empty(); }
  bool Ends(int64_t token) const;

  size_t context() const { return context_; }
  size_t vocabulary() const { return vocabulary_; }
  const Suppressed& suppressed() const { return suppressed_; }

 private:
  explicit Language(Reader reader);

  size_t context_, vocabulary_;
  std::vector<uint32_t> ends_;
  Suppressed suppressed_;
  CharacterSet stripped_;
  std::vector<Frame> frames_;
  Tokenizer tokenizer_;
};

}  // namespace tensorwright
