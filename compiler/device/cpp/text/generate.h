// Generates a text with a session of a module, like generation/loop.py and output.py of the Python package.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../module.h"
#include "language.h"

namespace tensorwright {

struct GenerationOptions {
  size_t max_new_tokens = 256;
  std::vector<std::string> stops;
  SamplingOptions sampling;
};

struct Generation {
  std::vector<int64_t> tokens;
  std::string text, finish_reason;
  double prompt_seconds = 0, decode_seconds = 0;
};

// Calls `stream` with each piece of the text once it is known, in whole characters. Throws Error if the prompt is empty
// or longer than the context.
Generation Generate(Module* module, const Language& language, const std::vector<int64_t>& prompt, const GenerationOptions& options,
                    const std::function<void(const std::string&)>& stream);

}  // namespace tensorwright
