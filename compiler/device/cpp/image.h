// Image files.
#pragma once

#include <string>

#include "file.h"
#include "tensors.h"

namespace tensorwright {

// Limit on the pixels of an image, the same as in the Python package.
constexpr int64_t kMaxPixels = int64_t{1} << 26;

// The pixels of a PNG, JPEG, GIF (its first frame) or BMP file: uint8 (height, width, 3), in RGB, rotated according to
// its EXIF data, without its alpha channel. Throws Error if the file is damaged, truncated, or too large. Messages
// start with `path`.
ffi::Tensor ReadImage(Span file, const std::string& path);

// Writes such pixels as an uncompressed PNG file. Throws Error if it cannot be written.
void WritePng(const std::string& path, const ffi::Tensor& pixels);

}  // namespace tensorwright
