// JSON from files that may be damaged or hostile: every value is checked when it is read.
#pragma once

#include <tvm/ffi/extra/json.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "record_schema.h"

namespace tensorwright {

// A value in a document, with its path. Throws an Error with the path if a value does not have the requested type.
class JsonValue {
 public:
  // Throws Error unless the text is one JSON value whose objects and arrays are not nested too deep for a parser.
  // Messages start with `document`: "the manifest".
  static JsonValue Parse(const char* text, size_t size, const std::string& document);

  JsonValue operator[](const char* key) const;
  // Empty if the key is missing or its value is null.
  std::optional<JsonValue> Find(const char* key) const;
  std::vector<std::pair<std::string, JsonValue>> Members() const;
  std::vector<JsonValue> Items(size_t most = std::numeric_limits<size_t>::max()) const;
  bool IsText() const;
  bool IsList() const;
  bool Truth() const;
  // Valid UTF-8 of at most this many characters.
  std::string Text(size_t most = 4096) const;
  int64_t Whole(int64_t least, int64_t largest) const;
  // Finite and not negative.
  double Amount() const;

  // Throws Error, with the path, unless the value and everything in it have these types.
  void Check(const Schema& schema) const;

  // Throws Error if an object has any other member: its meaning would be ignored.
  void OnlyKeys(std::initializer_list<const char*> known) const;

  [[noreturn]] void Fail(const std::string& what) const;

 private:
  JsonValue(tvm::ffi::Any value, std::string document, std::string place)
      : value_(std::move(value)), document_(std::move(document)), place_(std::move(place)) {}
  JsonValue At(tvm::ffi::Any value, const std::string& step) const;

  tvm::ffi::Any value_;
  std::string document_, place_;
};

// Number of characters of a text; empty if it is not valid UTF-8.
std::optional<size_t> Characters(const std::string& text);

// A text as a JSON string, in quotes.
std::string JsonText(const std::string& text);

}  // namespace tensorwright
