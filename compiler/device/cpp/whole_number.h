// Decimal numbers in texts.
//
// std::strtol and similar functions are not used: compiled with glibc 2.38 or newer, programs that call them need that
// glibc.
#pragma once

#include <charconv>
#include <cstdint>
#include <limits>
#include <string_view>

namespace tensorwright {

// The number in a text of only digits; 0 for any other text, and for a number larger than `most`.
inline uint64_t WholeNumber(std::string_view text, uint64_t most = std::numeric_limits<uint64_t>::max()) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value <= most ? value : 0;
}

}  // namespace tensorwright
