#include "formula.h"

#include <algorithm>
#include <limits>

namespace tensorwright {
namespace {

constexpr size_t kShown = 80, kMaxDigits = 19;

std::string Shown(const std::string& text) { return Quoted(Shortened(text, kShown)); }

bool IsDigit(char letter) { return letter >= '0' && letter <= '9'; }

// Non-ASCII letters count as parts of names.
bool IsNamePart(char letter) {
  return IsDigit(letter) || letter == '_' || (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') ||
         (static_cast<unsigned char>(letter) & 0x80);
}

}  // namespace

// Converts a text to postfix order with a stack of operators and open parentheses (the shunting-yard algorithm).
struct Formula::Parser {
  explicit Parser(const std::string& source) : text(source) {
    bool after_operand = false;
    for (SkipSpaces(); at < text.size(); SkipSpaces()) after_operand = after_operand ? Operator() : Operand();
    Reduce(0);
    if (!after_operand || !open.empty()) Fail();
  }

  [[noreturn]] void Fail() const { throw FormulaError("not a formula: " + Shown(text)); }

  void SkipSpaces() {
    while (at < text.size() && text[at] == ' ') ++at;
  }

  bool Take(const char* token) {
    size_t size = std::char_traits<char>::length(token);
    if (text.compare(at, size, token) != 0) return false;
    at += size;
    return true;
  }

  // The characters starting here that satisfy a condition.
  template <typename Condition>
  std::string TakeWhile(Condition condition) {
    size_t start = at;
    while (at < text.size() && condition(text[at])) ++at;
    return text.substr(start, at - start);
  }

  // Reads a token where an operand is expected; returns whether the operand is complete.
  bool Operand() {
    if (Take("-")) return Open(Kind::kNegate);
    if (Take("(")) return Open(Kind::kOpen);
    if (IsDigit(text[at])) return Number(TakeWhile(IsDigit));
    if (!IsNamePart(text[at])) Fail();
    std::string name = TakeWhile(IsNamePart);
    if (name == "min" || name == "max") {
      size_t end = at;
      SkipSpaces();
      if (Take("(")) return Open(name == "min" ? Kind::kMin : Kind::kMax);
      at = end;
    }
    steps.push_back({Kind::kName, 0, name});
    return true;
  }

  bool Open(Kind kind) {
    open.push_back({kind, 1, {}});
    return false;
  }

  bool Number(const std::string& digits) {
    uint64_t value = 0;
    if (digits.size() > kMaxDigits) Fail();
    for (char digit : digits) value = value * 10 + static_cast<uint64_t>(digit - '0');
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) Fail();
    steps.push_back({Kind::kNumber, static_cast<int64_t>(value), {}});
    return true;
  }

  // Reads a token after an operand; returns whether the operand is still complete (after a closing parenthesis).
  bool Operator() {
    static const std::pair<const char*, Kind> operators[] = {
        {"+", Kind::kAdd}, {"-", Kind::kSubtract}, {"*", Kind::kMultiply}, {"//", Kind::kDivide}, {"%", Kind::kRemainder}};
    for (auto& [token, kind] : operators) {
      if (!Take(token)) continue;
      Reduce(Precedence(kind));
      return Open(kind);
    }
    Reduce(0);
    if (open.empty()) Fail();
    if (Take(")")) {
      Step opened = open.back();
      open.pop_back();
      if (opened.kind != Kind::kOpen) steps.push_back(opened);
      return true;
    }
    if (open.back().kind == Kind::kOpen || !Take(",")) Fail();
    ++open.back().number;
    return false;
  }

  static int Precedence(Kind kind) {
    switch (kind) {
      case Kind::kAdd:
      case Kind::kSubtract:
        return 1;
      case Kind::kMultiply:
      case Kind::kDivide:
      case Kind::kRemainder:
        return 2;
      case Kind::kNegate:
        return 3;
      default:
        return -1;  // a parenthesis
    }
  }

  // Emits the operators on top of the stack that bind at least as strongly.
  void Reduce(int precedence) {
    for (; !open.empty() && Precedence(open.back().kind) >= precedence; open.pop_back()) steps.push_back(open.back());
  }

  const std::string& text;
  size_t at = 0;
  std::vector<Step> open, steps;
};

Formula::Formula(std::string text) : text_(std::move(text)), steps_(Parser(text_).steps) {}

std::vector<std::string> Formula::Names() const {
  std::vector<std::string> names;
  for (const Step& step : steps_) {
    if (step.kind == Kind::kName) names.push_back(step.name);
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

int64_t Formula::Called(Kind kind, int64_t left, int64_t right) const {
  int64_t result = 0;
  bool overflows = false;
  switch (kind) {
    case Kind::kAdd:
      overflows = __builtin_add_overflow(left, right, &result);
      break;
    case Kind::kSubtract:
    case Kind::kNegate:
      overflows = __builtin_sub_overflow(left, right, &result);
      break;
    case Kind::kMultiply:
      overflows = __builtin_mul_overflow(left, right, &result);
      break;
    default:  // division, rounding down, and its remainder
      if (right == 0) throw FormulaError(Shown(text_) + " divides by zero");
      if (right == -1) {
        overflows = kind == Kind::kDivide && __builtin_sub_overflow(int64_t{0}, left, &result);
      } else {
        int64_t quotient = left / right, remainder = left % right;
        bool between = remainder != 0 && (remainder < 0) != (right < 0);
        result = kind == Kind::kDivide ? quotient - between : between ? remainder + right : remainder;
      }
  }
  if (overflows) throw FormulaError(Shown(text_) + " has a value of more than 64 bits");
  return result;
}

int64_t Formula::Value(const Sizes& sizes) const {
  std::vector<int64_t> stack;
  for (const Step& step : steps_) {
    if (step.kind == Kind::kNumber) {
      stack.push_back(step.number);
    } else if (step.kind == Kind::kName) {
      auto found = sizes.find(step.name);
      if (found == sizes.end()) throw FormulaError("the size of " + Quoted(step.name) + " is not known");
      stack.push_back(found->second);
    } else if (step.kind == Kind::kMin || step.kind == Kind::kMax) {
      auto first = stack.end() - static_cast<ptrdiff_t>(step.number);
      int64_t result = step.kind == Kind::kMin ? *std::min_element(first, stack.end()) : *std::max_element(first, stack.end());
      stack.erase(first, stack.end());
      stack.push_back(result);
    } else {
      int64_t right = stack.back(), left = 0;
      stack.pop_back();
      if (step.kind != Kind::kNegate) {
        left = stack.back();
        stack.pop_back();
      }
      stack.push_back(Called(step.kind, left, right));
    }
  }
  return stack[0];
}

}  // namespace tensorwright
