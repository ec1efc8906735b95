// Recordings.
#pragma once

#include <string>
#include <vector>

#include "file.h"

namespace tensorwright {

// The samples of an integer WAV file, from -1 to 1; channels are averaged. Throws Error if the file is damaged or
// empty, or its rate is not `rate` samples per second. Messages start with `path`.
std::vector<float> ReadWave(Span file, const std::string& path, int64_t rate);

}  // namespace tensorwright
