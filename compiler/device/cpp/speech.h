// Segments of recordings with speech.
#pragma once

#include <string>
#include <vector>

#include "module.h"
#include "processing.h"

namespace tensorwright {

// Segments in which the probability of speech is at least the processing's score, as lines of text, and as members of
// the JSON object that the Python package prints.
struct SpeechParts {
  std::string text, json;
};

// Runs the module on the windows of a recording; a session keeps its states. Throws Error if the module has other
// inputs than such windows.
SpeechParts FindSpeech(Module* module, const Processing& processing, const std::vector<float>& samples);

}  // namespace tensorwright
