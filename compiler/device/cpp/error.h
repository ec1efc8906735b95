// Errors and their messages.
#pragma once

#include <stdexcept>
#include <string>

namespace tensorwright {

// The message gives the problem and its location; the hint, on its own line, the remedy.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
  Error(const std::string& message, const std::string& hint) : std::runtime_error(message + "\n  hint: " + hint) {}
};

// A text in quotes, in the format of Python's repr(): characters that are not printable ASCII are escaped.
std::string Quoted(const std::string& text);

// A text for a terminal: control characters except line ends are escaped, since names come from files.
std::string Printable(const std::string& text);

// The first characters of a UTF-8 text.
std::string Shortened(const std::string& text, size_t characters);

}  // namespace tensorwright
