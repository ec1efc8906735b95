#include "tokenizer.h"

#include <algorithm>

namespace tensorwright {

void AddedTokens::Add(Token token) {
  if (token.text.empty()) return;
  std::vector<Token>& same = by_first_[token.text[0]];
  auto shorter = [&](const Token& other) { return other.text.size() < token.text.size(); };
  same.insert(std::find_if(same.begin(), same.end(), shorter), token);
}

const AddedTokens::Token* AddedTokens::At(const std::u32string& text, size_t place) const {
  auto found = by_first_.find(text[place]);
  if (found == by_first_.end()) return nullptr;
  for (const Token& token : found->second) {
    if (text.compare(place, token.text.size(), token.text) == 0) return &token;
  }
  return nullptr;
}

void AddedTokens::Cut(const Piece& piece, const CharacterSet& spaces, std::vector<Piece>* pieces, std::vector<uint32_t>* tokens) const {
  const std::u32string& text = piece.text;
  size_t done = 0;
  auto add = [&](size_t end, uint32_t token) {
    pieces->push_back({text.substr(done, end - done), piece.first && done == 0});
    tokens->push_back(token);
  };
  for (size_t at = 0; at < text.size();) {
    const Token* token = At(text, at);
    if (!token) {
      ++at;
      continue;
    }
    size_t begin = at, end = at += token->text.size();
    while (token->takes_left && begin > done && spaces.Has(text[begin - 1])) --begin;
    while (token->takes_right && end < text.size() && spaces.Has(text[end])) ++end;
    add(std::max(begin, done), token->number);
    done = end;
  }
  add(std::max(done, text.size()), kNone);
}

Tokenizer::Tokenizer(Reader* reader)
    : spaces_(reader->Numbers()), normalizers_(reader, spaces_), pre_tokenizers_(reader, spaces_), model_(ReadModel(reader)), added_(reader), decoder_(reader) {}

Tokenizer::Added::Added(Reader* reader) {
  for (uint32_t count = reader->Number(); count; --count) {
    uint32_t number = reader->Number();
    std::string text = reader->Text();
    std::u32string matched = FromUtf8(reader->Text(), "a token");
    bool special = reader->Truth(), normalized = reader->Truth(), left = reader->Truth(), right = reader->Truth();
    names[number] = {text, special};
    (normalized ? of_normalized_text : of_text).Add({number, matched, left, right});
  }
  before = reader->Numbers(), after = reader->Numbers();
}

void Tokenizer::EncodePiece(const Piece& piece, std::vector<uint32_t>* tokens) const {
  if (piece.text.empty()) return;
  std::vector<Piece> pieces;
  std::vector<uint32_t> between;
  for (const Piece& normalized : normalizers_({piece})) added_.of_normalized_text.Cut(normalized, spaces_, &pieces, &between);
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (!pieces[i].text.empty()) {
      for (const Piece& word : pre_tokenizers_({pieces[i]})) model_->Encode(word.text, tokens);
    }
    if (between[i] != AddedTokens::kNone) tokens->push_back(between[i]);
  }
}

std::vector<int64_t> Tokenizer::Encode(const std::string& text, bool special, size_t most) const {
  std::vector<uint32_t> tokens;
  if (special) tokens = added_.before;
  std::vector<Piece> pieces;
  std::vector<uint32_t> between;
  added_.of_text.Cut({FromUtf8(text, "the prompt"), true}, spaces_, &pieces, &between);
  for (size_t i = 0; i < pieces.size(); ++i) {
    EncodePiece(pieces[i], &tokens);
    if (between[i] != AddedTokens::kNone) tokens.push_back(between[i]);
  }
  size_t around = special ? added_.before.size() + added_.after.size() : 0;
  if (around > most) throw Error("the module takes fewer tokens than its tokenizer adds to a text");
  if (special) {
    tokens.resize(std::min(tokens.size(), most - added_.after.size()));
    tokens.insert(tokens.end(), added_.after.begin(), added_.after.end());
  }
  return {tokens.begin(), tokens.end()};
}

std::string Tokenizer::Decode(const std::vector<int64_t>& tokens) const {
  const Vocabulary& vocabulary = model_->vocabulary();
  std::vector<std::string> texts;
  for (int64_t token : tokens) {
    auto added = added_.names.find(static_cast<uint32_t>(token));
    if (added != added_.names.end()) {
      if (!added->second.special) texts.push_back(added->second.text);
    } else if (static_cast<size_t>(token) < vocabulary.size() && !vocabulary.TextOf(static_cast<uint32_t>(token)).empty()) {
      texts.push_back(vocabulary.TextOf(static_cast<uint32_t>(token)));
    }
  }
  return decoder_(std::move(texts));
}

}  // namespace tensorwright
