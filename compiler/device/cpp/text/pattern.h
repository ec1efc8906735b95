// Regular expressions as programs, compiled by native_tokenizer/patterns.py of the Python package.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "reader.h"

namespace tensorwright {

// Characters from `begin` to `end` of a text, and whether the pattern matches them.
struct Match {
  size_t begin, end;
  bool matches;
};

class Pattern {
 public:
  // Throws Error if its instructions are inconsistent.
  explicit Pattern(Reader* reader);

  // The whole text split into matches, leftmost first, and the parts between them.
  std::vector<Match> Cut(const std::u32string& text) const;

 private:
  // The same as in native_tokenizer/patterns.py, which documents them.
  enum Operation : uint32_t { kMatch, kCharacter, kFork, kJump, kGreedy, kPossessive, kAhead, kNotAhead, kAtomic, kBehind, kNotBehind, kBegin, kEnd };

  struct Instruction {
    uint32_t operation, a, b, c;
  };

  void Check() const;
  // The end of the match that begins at `at`, by the instructions from `start` on; npos if there is none.
  size_t Run(const std::u32string& text, size_t at, size_t start) const;

  std::vector<CharacterSet> sets_;
  std::vector<Instruction> code_;
};

}  // namespace tensorwright
