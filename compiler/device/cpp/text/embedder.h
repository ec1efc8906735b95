// Vectors of texts, the same as from `TextEmbedder` of the Python package.
#pragma once

#include <string>
#include <vector>

#include "../module.h"

namespace tensorwright {

// A unit vector for each text, by a module that maps token ids, and optionally a mask, to one vector per text, or one
// per token, which are averaged. Throws Error for other modules, and if the module has no tokenizer for this program.
std::vector<std::vector<float>> Embed(Module* module, const std::vector<std::string>& texts);

}  // namespace tensorwright
