// Sizes that depend on symbolic dimensions, such as "2*batch*(seq + 1)". Grammar, values and messages are the same as
// in the Python package (profiling/formula.py): change both, and the table of cases that tests both.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "error.h"

namespace tensorwright {

using Sizes = std::map<std::string, int64_t>;

struct FormulaError : Error {
  using Error::Error;
};

class Formula {
 public:
  // Throws FormulaError if the text is not a formula.
  explicit Formula(std::string text);

  const std::string& text() const { return text_; }
  std::vector<std::string> Names() const;

  // Throws FormulaError if a name has no size, a divisor is zero, or a value exceeds 64 bits.
  int64_t Value(const Sizes& sizes) const;

 private:
  enum class Kind { kNumber, kName, kAdd, kSubtract, kMultiply, kDivide, kRemainder, kNegate, kMin, kMax, kOpen };
  // In postfix order. `number` is the value of a number, or the number of arguments of a function.
  struct Step {
    Kind kind;
    int64_t number;
    std::string name;
  };
  struct Parser;

  int64_t Called(Kind kind, int64_t left, int64_t right) const;

  std::string text_;
  std::vector<Step> steps_;
};

}  // namespace tensorwright
