#include "bpe.h"

#include <algorithm>
#include <queue>

namespace tensorwright {

PairEncoding::PairEncoding(Reader* reader)
    : TokenModel(reader),
      merges_(reader->Numbers()),
      unknown_(ReadUnknown(reader)),
      fuses_unknown_(reader->Truth()),
      takes_whole_words_(reader->Truth()),
      continuing_(reader->Text()),
      ending_(reader->Text()),
      bytes_(reader, vocabulary()) {
  bool fits = merges_.size() % 4 == 0;
  for (size_t i = 3; fits && i < merges_.size(); i += 4) fits = vocabulary().Has(merges_[i]);
  if (!fits) throw Error("the tokenizer of the program is damaged");
}

// The rank and the token of a pair; null if it is not merged.
const uint32_t* PairEncoding::MergeOf(uint32_t left, uint32_t right) const {
  size_t begin = 0, end = merges_.size() / 4;
  while (begin < end) {
    size_t middle = (begin + end) / 2;
    const uint32_t* pair = &merges_[middle * 4];
    if (pair[0] < left || (pair[0] == left && pair[1] < right)) begin = middle + 1;
    else end = middle;
  }
  if (begin * 4 >= merges_.size() || merges_[begin * 4] != left || merges_[begin * 4 + 1] != right) return nullptr;
  return &merges_[begin * 4 + 2];
}

// The tokens of single characters. As in the tokenizers library, one for unknown characters precedes the next known
// one, after the bytes of characters in between.
std::vector<uint32_t> PairEncoding::Characters(const std::u32string& piece) const {
  std::vector<uint32_t> tokens;
  bool unknown = false;
  for (size_t i = 0; i < piece.size(); ++i) {
    std::string character = (i ? continuing_ : "") + ToUtf8(piece[i]) + (i + 1 == piece.size() ? ending_ : "");
    uint32_t token = vocabulary().TokenOf(character);
    if (token != kNoToken) {
      if (unknown) tokens.push_back(unknown_);
      unknown = false;
      tokens.push_back(token);
    } else if (!bytes_.Add(character, &tokens) && unknown_ != kNoToken) {
      if (unknown && !fuses_unknown_) tokens.push_back(unknown_);
      unknown = true;
    }
  }
  if (unknown) tokens.push_back(unknown_);
  return tokens;
}

// A pair that can be merged: its rank, its position, and the resulting token.
struct PairEncoding::Merged {
  uint32_t rank, token;
  size_t place;
  bool operator<(const Merged& other) const { return rank != other.rank ? rank > other.rank : place > other.place; }
};

void PairEncoding::Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const {
  if (takes_whole_words_) {
    uint32_t token = vocabulary().TokenOf(ToUtf8(piece));
    if (token != kNoToken) return tokens->push_back(token);
  }
  std::vector<uint32_t> symbols = Characters(piece);
  size_t count = symbols.size();
  std::vector<size_t> before(count), after(count);  // `count` at the ends
  std::vector<bool> gone(count);
  std::priority_queue<Merged> queue;
  auto look = [&](size_t place) {
    if (place >= count || after[place] >= count) return;
    if (const uint32_t* merge = MergeOf(symbols[place], symbols[after[place]])) queue.push({merge[0], merge[1], place});
  };
  for (size_t i = 0; i < count; ++i) before[i] = i ? i - 1 : count, after[i] = i + 1;
  for (size_t i = 0; i < count; ++i) look(i);
  while (!queue.empty()) {
    Merged top = queue.top();
    queue.pop();
    if (gone[top.place] || after[top.place] >= count) continue;
    size_t right = after[top.place];
    const uint32_t* merge = MergeOf(symbols[top.place], symbols[right]);
    if (!merge || merge[1] != top.token) continue;  // one of the two was merged in the meantime
    symbols[top.place] = top.token, gone[right] = true;
    after[top.place] = after[right];
    if (after[right] < count) before[after[right]] = top.place;
    look(before[top.place]);
    look(top.place);
  }
  for (size_t i = 0; i < count; ++i) {
    if (!gone[i]) tokens->push_back(symbols[i]);
  }
}

}  // namespace tensorwright
