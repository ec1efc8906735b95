#include "unigram.h"

#include <algorithm>

namespace tensorwright {
namespace {

constexpr double kUnknownPenalty = 10;  // score of an unknown character below that of the least likely token

size_t BytesOfCharacter(char first) {
  uint8_t byte = static_cast<uint8_t>(first);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

double LeastOf(const std::vector<double>& scores) { return scores.empty() ? 0 : *std::min_element(scores.begin(), scores.end()); }

}  // namespace

Unigram::Unigram(Reader* reader)
    : TokenModel(reader), scores_(reader->Doubles()), unknown_score_(LeastOf(scores_) - kUnknownPenalty), unknown_(ReadUnknown(reader)), bytes_(reader, vocabulary()) {
  if (scores_.size() != vocabulary().size()) throw Error("the tokenizer of the program is damaged");
}

std::vector<Unigram::Best> Unigram::BestWays(const std::string& text) const {
  std::vector<Best> best(text.size() + 1);
  for (size_t at = 0; at < text.size();) {
    double before = best[at].score;
    size_t next = at + BytesOfCharacter(text[at]);
    bool known = false;
    auto take = [&](size_t end, uint32_t token, double score) {
      if (best[end].begin == kNowhere || score > best[end].score) best[end] = {score, at, token};
    };
    vocabulary().Prefixes(text, at, [&](uint32_t token, size_t end) {
      take(end, token, scores_[token] + before);
      known = known || end == next;
    });
    if (!known) {
      if (unknown_ == kNoToken) throw Error("the tokenizer has no token for " + text.substr(at, next - at));
      take(next, unknown_, unknown_score_ + before);
    }
    at = next;
  }
  return best;
}

void Unigram::Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const {
  std::string text = ToUtf8(piece);
  std::vector<Best> best = BestWays(text);
  std::vector<size_t> edges;  // from the last to the first; adjacent unknown characters are one part
  bool unknown = false;
  for (size_t end = text.size(); end; end = best[end].begin) {
    bool is_unknown = best[end].token == unknown_;
    if (!(is_unknown && unknown)) edges.push_back(end);
    unknown = is_unknown;
  }
  size_t begin = 0;
  for (auto end = edges.rbegin(); end != edges.rend(); begin = *end++) {
    std::string part = text.substr(begin, *end - begin);
    uint32_t token = vocabulary().TokenOf(part);
    if (token != kNoToken) tokens->push_back(token);
    else if (!bytes_.Add(part, tokens)) tokens->push_back(unknown_);
  }
}

}  // namespace tensorwright
