#include "model.h"

#include "bpe.h"
#include "unigram.h"
#include "word_piece.h"

namespace tensorwright {
namespace {

// The same as in native_tokenizer/tokenizer.py.
enum class ModelKind : uint32_t { kPairEncoding = 1, kUnigram, kWordPiece, kWordLevel };

}  // namespace

uint32_t TokenModel::ReadUnknown(Reader* reader) const {
  uint32_t unknown = reader->Number();
  if (unknown != kNoToken && !vocabulary_.Has(unknown)) throw Error("the tokenizer of the program is damaged");
  return unknown;
}

std::unique_ptr<TokenModel> ReadModel(Reader* reader) {
  switch (static_cast<ModelKind>(reader->Number())) {
    case ModelKind::kPairEncoding: return std::make_unique<PairEncoding>(reader);
    case ModelKind::kUnigram: return std::make_unique<Unigram>(reader);
    case ModelKind::kWordPiece: return std::make_unique<WordPiece>(reader);
    case ModelKind::kWordLevel: return std::make_unique<WordLevel>(reader);
    default: throw Error("the tokenizer of the program is damaged");
  }
}

}  // namespace tensorwright
