// The processing that a module was compiled with (`compiler/support/processing.py`), as far as its results are read by it.
#pragma once

#include <string>
#include <vector>

#include "artifact.h"

namespace tensorwright {

struct Processing {
  std::string task, resize;
  int64_t rows = 0, columns = 0;  // of the image that the net reads
  std::vector<std::string> names;
  int64_t rate = 0, window = 0, context = 0;  // of a task on speech, in samples
  double score = 0;

  // Throws Error unless the module takes pictures or recordings.
  static Processing Of(const Artifact& artifact);
};

}  // namespace tensorwright
