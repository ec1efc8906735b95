#include "pattern.h"

namespace tensorwright {
namespace {

constexpr size_t kNone = std::u32string::npos;

// A backtracking point: continue at `at`, or at any position down to `least`.
struct Other {
  size_t instruction, at, least;
};

}  // namespace

Pattern::Pattern(Reader* reader) {
  for (uint32_t sets = reader->Number(); sets; --sets) sets_.emplace_back(reader->Numbers());
  std::vector<uint32_t> numbers = reader->Numbers();
  for (size_t i = 0; i + 3 < numbers.size(); i += 4) code_.push_back({numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3]});
  Check();
}

void Pattern::Check() const {
  bool fits = !code_.empty() && code_.back().operation == kMatch;
  for (const Instruction& each : code_) {
    bool jumps = each.operation == kFork || each.operation == kJump || (each.operation >= kAhead && each.operation <= kAtomic);
    bool reads = each.operation == kCharacter || each.operation == kGreedy || each.operation == kPossessive || each.operation == kBehind ||
                 each.operation == kNotBehind;
    fits = fits && each.operation <= kEnd && (!jumps || each.a < code_.size()) && (each.operation != kFork || each.b < code_.size()) &&
           (!reads || each.a < sets_.size());
  }
  if (!fits) throw Error("the tokenizer of the program is damaged");
}

size_t Pattern::Run(const std::u32string& text, size_t at, size_t start) const {
  std::vector<Other> others;
  size_t next = start;
  for (;;) {
    const Instruction& now = code_[next++];
    bool goes_on = true;
    switch (now.operation) {
      case kMatch:
        return at;
      case kCharacter:
        goes_on = at < text.size() && sets_[now.a].Has(text[at]);
        at += goes_on;
        break;
      case kFork:
        others.push_back({now.b, at, at});
        next = now.a;
        break;
      case kJump:
        next = now.a;
        break;
      case kGreedy:
      case kPossessive: {
        size_t most = text.size() - at < now.c ? text.size() : at + now.c, end = at;
        while (end < most && sets_[now.a].Has(text[end])) ++end;
        goes_on = end - at >= now.b;
        if (goes_on && now.operation == kGreedy && end > at + now.b) others.push_back({next, end - 1, at + now.b});
        at = end;
        break;
      }
      case kAhead:
      case kNotAhead:
        goes_on = (Run(text, at, next) != kNone) == (now.operation == kAhead);
        next = now.a;
        break;
      case kAtomic: {
        size_t end = Run(text, at, next);
        goes_on = end != kNone, at = end, next = now.a;
        break;
      }
      case kBehind:
      case kNotBehind:
        goes_on = (at > 0 && sets_[now.a].Has(text[at - 1])) == (now.operation == kBehind);
        break;
      case kBegin:
        goes_on = at == 0;
        break;
      default:
        goes_on = at == text.size();
    }
    if (goes_on) continue;
    if (others.empty()) return kNone;
    Other& other = others.back();
    next = other.instruction, at = other.at;
    if (other.at > other.least) --other.at;
    else others.pop_back();
  }
}

std::vector<Match> Pattern::Cut(const std::u32string& text) const {
  std::vector<Match> found;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = Run(text, at, 0);
    if (end == kNone || end == at) {
      ++at;
      continue;
    }
    if (at > done) found.push_back({done, at, false});
    found.push_back({at, end, true});
    at = done = end;
  }
  if (done < text.size()) found.push_back({done, text.size(), false});
  return found;
}

}  // namespace tensorwright
