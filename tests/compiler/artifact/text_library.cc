// The tokenizer of static executables as a shared library, for tests.
#include <cstring>

#include "tokenizer.h"

using namespace tensorwright;

namespace {
thread_local std::string message;
}

extern "C" {

Tokenizer* text_open(const uint8_t* content, size_t size) {
  try {
    Reader reader({content, size});
    return new Tokenizer(&reader);
  } catch (const std::exception& error) {
    message = error.what();
    return nullptr;
  }
}

const char* text_message() { return message.c_str(); }

void text_close(Tokenizer* tokenizer) { delete tokenizer; }

// How many tokens there are, the first `most` of which are stored; -1 where the text is refused.
int64_t text_encode(const Tokenizer* tokenizer, const char* text, size_t size, bool special, int64_t* tokens, size_t most) {
  try {
    std::vector<int64_t> found = tokenizer->Encode(std::string(text, size), special);
    if (!found.empty()) std::memcpy(tokens, found.data(), std::min(most, found.size()) * sizeof(int64_t));
    return static_cast<int64_t>(found.size());
  } catch (const std::exception& error) {
    message = error.what();
    return -1;
  }
}

const char* text_decode(const Tokenizer* tokenizer, const int64_t* tokens, size_t count, size_t* size) {
  message = tokenizer->Decode({tokens, tokens + count});
  *size = message.size();
  return message.data();
}
}
