// Image files.
#pragma once

#include <string>

#include "file.h"
#include "tensors.h"

namespace tensorwright {

// Pixels of an image at most, as in the Python package.
constexpr int64_t kMostPixels = int64_t{1} << 26;

// The pixels of a PNG, JPEG, GIF (its first frame) or BMP file: uint8 (height, width, 3), in RGB, turned as its EXIF data
// say, without its alpha channel. Throws Error where the file is damaged, cut, or too large. `path` begins the messages.
ffi::Tensor ReadImage(Span file, const std::string& path);

// Such pixels as a PNG file, not compressed. Throws Error where it cannot be written.
void WritePng(const std::string& path, const ffi::Tensor& pixels);

}  // namespace tensorwright
