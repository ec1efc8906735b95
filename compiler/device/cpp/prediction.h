// Predictions of modules that were compiled with processing of pictures.
#pragma once

#include <string>
#include <vector>

#include "module.h"
#include "processing.h"
#include "report.h"

namespace tensorwright {

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
