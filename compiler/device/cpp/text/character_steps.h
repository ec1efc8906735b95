// Normalizers that change single characters.
#pragma once

#include <memory>

#include "steps.h"

namespace tensorwright {

// Characters that are written by other texts.
std::unique_ptr<Step> ReadMapped(Reader* reader);

// Spaces on both sides of the characters of a set.
std::unique_ptr<Step> ReadSpaced(Reader* reader);

// The rules of SentencePiece (`precompiled_charsmap`).
std::unique_ptr<Step> ReadCharsmap(Reader* reader);

}  // namespace tensorwright
