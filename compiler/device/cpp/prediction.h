// Predictions of modules that were compiled with processing of pictures.
#pragma once

#include <string>
#include <vector>

#include "module.h"
#include "report.h"

namespace tensorwright {

// The parts of a module's processing (`compiler/support/processing.py`) that its results are read by.
struct Processing {
  std::string task, resize;
  int64_t rows = 0, columns = 0;  // what the net reads
  std::vector<std::string> names;

  // Throws Error unless the module takes pictures.
  static Processing Of(const Artifact& artifact);
};

// A prediction as lines of text, and as the members of the JSON object that the Python package prints, without masks.
struct Prediction {
  std::string text, json;
  std::optional<ffi::Tensor> picture;  // with boxes or masks, of the tasks that have them
};

// The prediction in what a run on an image returned. Throws Error where that is not of its task.
Prediction ReadPrediction(const Processing& processing, const Manifest& manifest, const std::vector<ffi::Tensor>& outputs, const ffi::Tensor& image);

// "street-boxes.png" of "photos/street.jpg".
std::string PicturePath(const Processing& processing, const std::string& image);

}  // namespace tensorwright
