#include "record_schema.h"

#include <tvm/ffi/extra/json.h>

#include <cmath>

#include "checked_json.h"

namespace tensorwright {
namespace {

namespace json = tvm::ffi::json;
using Found = std::optional<Misfit>;
constexpr int kDeepest = 199;  // nesting of values of any type, as in Python
constexpr size_t kDigestLetters = 64;

std::string TextOf(const tvm::ffi::String& text) { return {text.data(), text.size()}; }

Found Here(std::string why) { return Misfit{"", std::move(why)}; }

// Adds the path of a value inside another one.
Found At(const std::string& step, const tvm::ffi::Any& value, const Schema& schema) {
  Found found = FindMisfit(value, schema);
  if (found) found->place = step + (found->place.empty() ? "" : "." + found->place);
  return found;
}

Found InText(const tvm::ffi::Any& value, const Schema& schema) {
  auto given = value.as<tvm::ffi::String>();
  if (!given) return Here("it must be a string");
  std::string text = TextOf(*given);
  std::optional<size_t> count = Characters(text);
  if (!count) return Here("it is not valid UTF-8");
  int64_t length = static_cast<int64_t>(*count);
  if (schema.kind == Schema::Kind::kText) {
    if (length < schema.least) return Here("it must not be empty");
    if (length > schema.most) return Here("it has more than " + std::to_string(schema.most) + " characters");
    return std::nullopt;
  }
  if (schema.kind == Schema::Kind::kDigest) {
    bool digest = text.size() == kDigestLetters && text.find_first_not_of("0123456789abcdef") == std::string::npos;
    return digest ? std::nullopt : Here("it must be 64 hexadecimal digits");
  }
  for (size_t i = 0; i < schema.count; ++i) {
    if (text == schema.members[i].key) return std::nullopt;
  }
  return Here(Quoted(text) + " is not known to this program");
}

Found InNumber(const tvm::ffi::Any& value, const Schema& schema) {
  auto whole = value.as<int64_t>();
  if (schema.kind == Schema::Kind::kWhole) {
    if (whole && *whole >= schema.least && *whole <= schema.most) return std::nullopt;
    return Here("it must be a whole number from " + std::to_string(schema.least) + " to " + std::to_string(schema.most));
  }
  double number = whole ? static_cast<double>(*whole) : value.as<double>().value_or(NAN);
  if (std::isfinite(number) && (schema.least != 0 || number >= 0)) return std::nullopt;
  return Here(schema.least == 0 ? "it must be a number, finite and not negative" : "it must be a finite number");
}

Found InItems(const tvm::ffi::Any& value, const Schema& schema) {
  auto items = value.as<json::Array>();
  if (!items) return Here("it must be an array");
  bool list = schema.kind == Schema::Kind::kList;
  if (list && static_cast<int64_t>(items->size()) > schema.most) return Here("it has more than " + std::to_string(schema.most) + " items");
  if (!list && items->size() != schema.count) return Here("it must have " + std::to_string(schema.count) + " items");
  for (size_t i = 0; i < items->size(); ++i) {
    if (Found found = At(std::to_string(i), (*items)[static_cast<int64_t>(i)], *schema.members[list ? 0 : i].schema)) return found;
  }
  return std::nullopt;
}

Found InMap(const json::Object& object, const Schema& schema) {
  for (const auto& [key, value] : object) {
    if (Found found = At("a name", key, *schema.members[0].schema)) return found;
    if (Found found = At(TextOf(key.cast<tvm::ffi::String>()), value, *schema.members[1].schema)) return found;
  }
  return std::nullopt;
}

Found InRecord(const json::Object& object, const Schema& schema) {
  size_t known = 0;
  for (size_t i = 0; i < schema.count; ++i) {
    const Member& member = schema.members[i];
    tvm::ffi::String key(member.key);
    if (object.count(key)) {
      ++known;
      if (Found found = At(member.key, object.at(key), *member.schema)) return found;
    } else if (member.required) {
      return Here(std::string(member.key) + " is missing");
    }
  }
  if (known == object.size()) return std::nullopt;
  for (const auto& [key, value] : object) {
    std::string name = TextOf(key.cast<tvm::ffi::String>());
    bool listed = false;
    for (size_t i = 0; i < schema.count; ++i) listed = listed || name == schema.members[i].key;
    if (!listed) return Misfit{Characters(name) ? name : "a name", kUnknownMember};
  }
  return std::nullopt;
}

// Checks a value of any type: text must be valid, and nesting limited.
Found InAnything(const tvm::ffi::Any& value, int most) {
  if (most < 0) return Here("it is nested too deeply");
  if (auto text = value.as<tvm::ffi::String>()) {
    if (!Characters(TextOf(*text))) return Here("it is not valid UTF-8");
  } else if (auto items = value.as<json::Array>()) {
    for (const tvm::ffi::Any& item : *items) {
      if (Found found = InAnything(item, most - 1)) return found;
    }
  } else if (auto object = value.as<json::Object>()) {
    for (const auto& [key, item] : *object) {
      if (Found found = InAnything(key, most)) return found;
      if (Found found = InAnything(item, most - 1)) return found;
    }
  }
  return std::nullopt;
}

Found InEither(const tvm::ffi::Any& value, const Schema& schema) {
  Found first;
  for (size_t i = 0; i < schema.count; ++i) {
    Found found = FindMisfit(value, *schema.members[i].schema);
    if (!found) return std::nullopt;
    if (!first) first = found;
  }
  return first;
}

}  // namespace

#include "record_schema_table.h"

std::optional<Misfit> FindMisfit(const tvm::ffi::Any& value, const Schema& schema) {
  using Kind = Schema::Kind;
  switch (schema.kind) {
    case Kind::kAnything:
      return InAnything(value, kDeepest);
    case Kind::kNull:
      return value == nullptr ? std::nullopt : Here("it must be null");
    case Kind::kTruth:
      return value.as<bool>() ? std::nullopt : Here("it must be true or false");
    case Kind::kWhole:
    case Kind::kNumber:
      return InNumber(value, schema);
    case Kind::kText:
    case Kind::kDigest:
    case Kind::kChoice:
      return InText(value, schema);
    case Kind::kEither:
      return InEither(value, schema);
    case Kind::kList:
    case Kind::kTuple:
      return InItems(value, schema);
    case Kind::kMap:
    case Kind::kRecord:
      break;
  }
  auto object = value.as<json::Object>();
  if (!object) return Here("it must be an object");
  return schema.kind == Kind::kMap ? InMap(*object, schema) : InRecord(*object, schema);
}

}  // namespace tensorwright
