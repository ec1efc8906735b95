// Errors and their messages.
#pragma once

#include <stdexcept>
#include <string>

namespace tensorwright {

// The message says what is wrong and where; the hint, on a line of its own, what can be done about it.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
  Error(const std::string& message, const std::string& hint) : std::runtime_error(message + "\n  hint: " + hint) {}
};

// A text in quotes, as Python's repr() writes it: what is not printable in ASCII is escaped.
std::string Quoted(const std::string& text);

// A text for a terminal: control characters, but for ends of lines, are escaped, since names come from files.
std::string Printable(const std::string& text);

// The first characters of a UTF-8 text.
std::string Shortened(const std::string& text, size_t characters);

}  // namespace tensorwright
