// Recordings.
#pragma once

#include <string>
#include <vector>

#include "file.h"

namespace tensorwright {

// The samples of a WAV file of integers, from -1 to 1; channels are averaged. Throws Error where the file is damaged,
// holds nothing, or has another rate than `rate` samples a second. `path` begins the messages.
std::vector<float> ReadWave(Span file, const std::string& path, int64_t rate);

}  // namespace tensorwright
