// Predictions of modules compiled with image processing.
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
  std::optional<ffi::Tensor> picture;  // with boxes or masks, for tasks that have them
};

// Converts the outputs of a run on an image to a prediction. Throws Error if they do not match the task.
Prediction ReadPrediction(const Processing& processing, const Manifest& manifest, const std::vector<ffi::Tensor>& outputs, const ffi::Tensor& image);

// "street-boxes.png" of "photos/street.jpg".
std::string PicturePath(const Processing& processing, const std::string& image);

}  // namespace tensorwright
