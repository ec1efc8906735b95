// Normalizers that change single characters.
#pragma once

#include <memory>

#include "steps.h"

namespace tensorwright {

// Replaces characters by texts.
std::unique_ptr<Step> ReadMapped(Reader* reader);

// Adds spaces on both sides of the characters in a set.
std::unique_ptr<Step> ReadSpaced(Reader* reader);

// The rules of SentencePiece (`precompiled_charsmap`).
std::unique_ptr<Step> ReadCharsmap(Reader* reader);

}  // namespace tensorwright
