// Models that split pieces of a text into tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vocabulary.h"

namespace tensorwright {

class TokenModel {
 public:
  explicit TokenModel(Reader* reader) : vocabulary_(reader) {}
  virtual ~TokenModel() = default;

  // Appends the tokens of one piece. Throws Error if a part has no token and there is none for unknown parts.
  virtual void Encode(const std::u32string& piece, std::vector<uint32_t>* tokens) const = 0;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  // The token for unknown parts, kNoToken if there is none.
  uint32_t ReadUnknown(Reader* reader) const;

 private:
  Vocabulary vocabulary_;
};

// Throws Error for an unknown kind.
std::unique_ptr<TokenModel> ReadModel(Reader* reader);

}  // namespace tensorwright
