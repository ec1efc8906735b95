// Vectors of texts, as `TextEmbedder` of the Python package makes them.
#pragma once

#include <string>
#include <vector>

#include "../module.h"

namespace tensorwright {

// A vector of length 1 for each text, by a module that maps token ids, and perhaps a mask, to one vector or to one for
// each token, which are averaged. Throws Error for other modules, and where the module has no tokenizer for this.
std::vector<std::vector<float>> Embed(Module* module, const std::vector<std::string>& texts);

}  // namespace tensorwright
