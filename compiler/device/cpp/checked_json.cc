#include "checked_json.h"

#include <cmath>
#include <cstring>

namespace tensorwright {
namespace {

namespace json = tvm::ffi::json;
constexpr int kDeepestText = 250;  // no valid document is nested deeper
constexpr size_t kShownPlace = 200;

bool IsDecimal(char letter) { return letter >= '0' && letter <= '9'; }

// The end of the number that begins here according to JSON's grammar; null if it is not one.
const char* NumberEnd(const char* at, const char* end) {
  auto digits = [&] {
    const char* first = at;
    while (at != end && IsDecimal(*at)) ++at;
    return at != first;
  };
  auto take = [&](char one, char other) { return at != end && (*at == one || *at == other) && (++at, true); };
  take('-', '-');
  if (!take('0', '0') && !digits()) return nullptr;
  if (take('.', '.') && !digits()) return nullptr;
  if (take('e', 'E')) {
    take('+', '-');
    if (!digits()) return nullptr;
  }
  return at;
}

// Text that TVM's parser accepts although it is not JSON according to Python. The parser is recursive: without a limit
// on nesting, a file could overflow the stack. Null if there is none.
const char* Unreadable(const char* text, size_t size) {
  int depth = 0;
  bool quoted = false;
  const char* end = text + size;
  for (const char* at = text; at < end; ++at) {
    if (quoted) {
      if (*at == '\\') {
        ++at;
      } else if (*at == '"') {
        quoted = false;
      }
    } else if (*at == '"') {
      quoted = true;
    } else if (*at == '[' || *at == '{') {
      if (++depth > kDeepestText) return "it is nested too deeply";
    } else if (*at == ']' || *at == '}') {
      --depth;
    } else if (IsDecimal(*at) || std::strchr("-+.NI", *at)) {
      const char* last = NumberEnd(at, end);
      if (!last || (last != end && std::strchr("+-.0123456789eE", *last))) return "it holds a number that is not valid JSON";
      at = last - 1;
    }
  }
  return nullptr;
}

// Bytes of the UTF-8 character that begins here; 0 if it is invalid.
size_t CharacterAt(const std::string& text, size_t at) {
  auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  unsigned first = byte(at);
  size_t size = first < 0x80 ? 1 : first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
  for (size_t i = 1; i < size; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  bool overlong = (first == 0xe0 && byte(at + 1) < 0xa0) || (first == 0xf0 && byte(at + 1) < 0x90);
  bool surrogate = first == 0xed && byte(at + 1) >= 0xa0, beyond = first == 0xf4 && byte(at + 1) >= 0x90;
  return overlong || surrogate || beyond ? 0 : size;
}

}  // namespace

std::optional<size_t> Characters(const std::string& text) {
  size_t count = 0;
  for (size_t at = 0; at < text.size(); ++count) {
    size_t size = CharacterAt(text, at);
    if (size == 0) return std::nullopt;
    at += size;
  }
  return count;
}

JsonValue JsonValue::Parse(const char* text, size_t size, const std::string& document) {
  JsonValue result({}, document, "");
  if (const char* problem = Unreadable(text, size)) result.Fail(problem);
  tvm::ffi::String problem;
  result.value_ = json::Parse(tvm::ffi::String(text, size), &problem);
  if (!problem.empty()) result.Fail("it is not JSON (" + std::string(problem) + ")");
  return result;
}

void JsonValue::Fail(const std::string& what) const {
  throw Error(document_ + " is not valid: " + (place_.empty() ? "" : Shortened(place_, kShownPlace) + ": ") + what);
}

JsonValue JsonValue::At(tvm::ffi::Any value, const std::string& step) const {
  return {std::move(value), document_, place_.empty() ? step : place_ + "." + step};
}

JsonValue JsonValue::operator[](const char* key) const {
  auto object = value_.as<json::Object>();
  if (!object) Fail("it must be an object");
  tvm::ffi::String name(key);
  if (!object->count(name)) Fail(std::string(key) + " is missing");
  return At(object->at(name), key);
}

std::optional<JsonValue> JsonValue::Find(const char* key) const {
  auto object = value_.as<json::Object>();
  if (!object) Fail("it must be an object");
  tvm::ffi::String name(key);
  if (!object->count(name) || object->at(name) == nullptr) return std::nullopt;
  return At(object->at(name), key);
}

std::vector<std::pair<std::string, JsonValue>> JsonValue::Members() const {
  auto object = value_.as<json::Object>();
  if (!object) Fail("it must be an object");
  std::vector<std::pair<std::string, JsonValue>> result;
  for (const auto& [key, value] : *object) {
    std::string name = At(key, "a name").Text(std::numeric_limits<size_t>::max());
    result.emplace_back(name, At(value, name));
  }
  return result;
}

std::vector<JsonValue> JsonValue::Items(size_t most) const {
  auto array = value_.as<json::Array>();
  if (!array) Fail("it must be an array");
  if (array->size() > most) Fail("it has more than " + std::to_string(most) + " items");
  std::vector<JsonValue> result;
  for (const tvm::ffi::Any& item : *array) result.push_back(At(item, std::to_string(result.size())));
  return result;
}

bool JsonValue::IsText() const { return value_.as<tvm::ffi::String>().has_value(); }

bool JsonValue::IsList() const { return value_.as<tvm::ffi::json::Array>().has_value(); }

std::string JsonValue::Text(size_t most) const {
  auto text = value_.as<tvm::ffi::String>();
  if (!text) Fail("it must be a string");
  std::string result(text->data(), text->size());
  std::optional<size_t> count = Characters(result);
  if (!count) Fail("it is not valid UTF-8");
  if (*count > most) Fail("it has more than " + std::to_string(most) + " characters");
  return result;
}

bool JsonValue::Truth() const {
  auto truth = value_.as<bool>();
  if (!truth) Fail("it must be true or false");
  return *truth;
}

int64_t JsonValue::Whole(int64_t least, int64_t largest) const {
  auto number = value_.as<int64_t>();
  if (!number || *number < least || *number > largest) {
    Fail("it must be a whole number from " + std::to_string(least) + " to " + std::to_string(largest));
  }
  return *number;
}

double JsonValue::Amount() const {
  double number = -1;
  if (auto whole = value_.as<int64_t>()) {
    number = static_cast<double>(*whole);
  } else if (auto fraction = value_.as<double>()) {
    number = *fraction;
  }
  if (!std::isfinite(number) || number < 0) Fail("it must be a number, finite and not negative");
  return number;
}

void JsonValue::Check(const Schema& schema) const {
  std::optional<Misfit> found = FindMisfit(value_, schema);
  if (!found) return;
  std::string step = found->place.empty() || place_.empty() ? "" : ".", place = Shortened(place_ + step + found->place, kShownPlace);
  throw Error(document_ + " is not valid: " + (place.empty() ? "" : place + ": ") + found->why);
}

void JsonValue::OnlyKeys(std::initializer_list<const char*> known) const {
  for (const auto& [name, value] : Members()) {
    bool found = false;
    for (const char* each : known) found = found || name == each;
    if (!found) value.Fail(kUnknownMember);
  }
}

std::string JsonText(const std::string& text) { return tvm::ffi::json::Stringify(tvm::ffi::json::Value(tvm::ffi::String(text))); }

}  // namespace tensorwright
