// Decimal numbers in texts.
//
// std::strtol and its kin are not used: compiled where glibc is 2.38 or newer, programs that call them need that glibc.
#pragma once

#include <charconv>
#include <cstdint>
#include <limits>
#include <string_view>

namespace tensorwright {

// The number that a text is, digits alone; 0 for any other text, and for one that is larger than `most`.
inline uint64_t WholeNumber(std::string_view text, uint64_t most = std::numeric_limits<uint64_t>::max()) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value <= most ? value : 0;
}

}  // namespace tensorwright
