// The processing that a module was compiled with (`compiler/support/processing.py`), as far as it is needed to read
// results.
#pragma once

#include <string>
#include <vector>

#include "artifact.h"

namespace tensorwright {

struct Processing {
  std::string task, resize;
  int64_t rows = 0, columns = 0;  // of the net's input image
  std::vector<std::string> names;
  int64_t rate = 0, window = 0, context = 0;  // for a speech task, in samples
  double score = 0;

  // Throws Error unless the module processes images or recordings.
  static Processing Of(const Artifact& artifact);
};

}  // namespace tensorwright
