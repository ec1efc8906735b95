// Parts of recordings in which somebody speaks.
#pragma once

#include <string>
#include <vector>

#include "module.h"
#include "processing.h"

namespace tensorwright {

// From where to where the probability of speech is at least the processing's score, as lines of text, and as members of
// the JSON object that the Python package prints.
struct SpeechParts {
  std::string text, json;
};

// Runs the module on a recording, a window after another; a session keeps its states. Throws Error where the module does
// not read such windows alone.
SpeechParts FindSpeech(Module* module, const Processing& processing, const std::vector<float>& samples);

}  // namespace tensorwright
