#include "error.h"

namespace tensorwright {
namespace {

bool IsControl(char letter) {
  unsigned char byte = static_cast<unsigned char>(letter);
  return byte < 0x20 || byte == 0x7f;
}

std::string Escaped(char letter) {
  const char* digits = "0123456789abcdef";
  unsigned char byte = static_cast<unsigned char>(letter);
  return {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
}

}  // namespace

std::string Quoted(const std::string& text) {
  char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string result(1, quote);
  for (char letter : text) {
    if (letter == quote || letter == '\\') {
      result += '\\';
      result += letter;
    } else if (letter == '\n' || letter == '\r' || letter == '\t') {
      result += letter == '\n' ? "\\n" : letter == '\r' ? "\\r" : "\\t";
    } else if (IsControl(letter)) {
      result += Escaped(letter);
    } else {
      result += letter;
    }
  }
  return result + quote;
}

std::string Printable(const std::string& text) {
  std::string result;
  for (char letter : text) result += IsControl(letter) && letter != '\n' ? Escaped(letter) : std::string(1, letter);
  return result;
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
