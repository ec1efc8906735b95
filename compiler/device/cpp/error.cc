#include "error.h"

namespace tensorwright {

std::string Quoted(const std::string& text) {
  char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string result(1, quote);
  for (char letter : text) {
    unsigned char byte = static_cast<unsigned char>(letter);
    if (letter == quote || letter == '\\') {
      result += '\\';
      result += letter;
    } else if (letter == '\n' || letter == '\r' || letter == '\t') {
      result += letter == '\n' ? "\\n" : letter == '\r' ? "\\r" : "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      const char* digits = "0123456789abcdef";
      result += "\\x";
      result += digits[byte >> 4];
      result += digits[byte & 15];
    } else {
      result += letter;
    }
  }
  return result + quote;
}

std::string Shortened(const std::string& text, size_t characters) {
  size_t end = 0;
  while (end < text.size()) {
    bool begins = (static_cast<unsigned char>(text[end]) & 0xc0) != 0x80;
    if (begins && characters-- == 0) break;
    ++end;
  }
  return text.substr(0, end);
}

}  // namespace tensorwright
