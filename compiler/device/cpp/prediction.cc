#include "prediction.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "checked_json.h"
#include "font.h"
#include "image.h"

namespace tensorwright {
namespace {

using Color = std::array<uint8_t, 3>;
// The same colors as in the Python package.
constexpr Color kColors[] = {{0xe6, 0x19, 0x4b}, {0x3c, 0xb4, 0x4b}, {0x43, 0x63, 0xd8}, {0xf5, 0x82, 0x31}, {0x91, 0x1e, 0xb4},
                             {0x00, 0x80, 0x80}, {0x9a, 0x63, 0x24}, {0x80, 0x80, 0x00}, {0x00, 0x00, 0x75}, {0xe6, 0x00, 0x7e}};
constexpr int64_t kLineShare = 300;

const Color& ColorOf(int64_t number) {
  constexpr int64_t count = static_cast<int64_t>(std::size(kColors));
  return kColors[(number % count + count) % count];
}

std::string Format(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string Name(const Processing& processing, int64_t number) {
  bool known = number >= 0 && static_cast<size_t>(number) < processing.names.size();
  return known ? processing.names[static_cast<size_t>(number)] : std::to_string(number);
}

std::string Padded(const std::string& text, size_t width) { return text + std::string(width > text.size() ? width - text.size() : 0, ' '); }

// An output by name, with its sizes.
template <typename T>
struct Output {
  const T* data = nullptr;
  std::vector<int64_t> shape;
};

template <typename T>
Output<T> Find(const Manifest& manifest, const std::vector<ffi::Tensor>& outputs, const char* name, DLDataType dtype, size_t rank, bool needed = true) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (manifest.outputs[i].name != name) continue;
    DLDataType found = outputs[i].dtype();
    auto shape = outputs[i].shape();
    if (found.code != dtype.code || found.bits != dtype.bits || shape.size() != rank) throw Error(std::string("the module's output ") + name + " is not what its processing states");
    return {static_cast<const T*>(outputs[i].data_ptr()), {shape.begin(), shape.end()}};
  }
  if (needed) throw Error(std::string("the module has no output ") + name);
  return {};
}

constexpr DLDataType kFloat{kDLFloat, 32, 1}, kInteger{kDLInt, 64, 1}, kByte{kDLUInt, 8, 1};

// Scores and classes, of equal number.
struct Scored {
  Output<float> scores;
  Output<int64_t> classes;
  size_t count;
};

Scored FindScored(const Manifest& manifest, const std::vector<ffi::Tensor>& outputs) {
  Scored found{Find<float>(manifest, outputs, "scores", kFloat, 1), Find<int64_t>(manifest, outputs, "classes", kInteger, 1), 0};
  if (found.scores.shape != found.classes.shape) throw Error("the module returns another number of scores than of classes");
  found.count = static_cast<size_t>(found.scores.shape[0]);
  return found;
}

// Mixes the pixel with a color.
void Tint(uint8_t* pixel, const Color& color) {
  for (size_t i = 0; i < 3; ++i) pixel[i] = static_cast<uint8_t>((pixel[i] + color[i]) / 2);
}

// An image that can be drawn on.
struct Canvas {
  explicit Canvas(const ffi::Tensor& image)
      : tensor(Module::Copy(image)), pixels(static_cast<uint8_t*>(tensor.data_ptr())), height(image.shape()[0]), width(image.shape()[1]) {}

  uint8_t* At(int64_t y, int64_t x) { return pixels + 3 * (y * width + x); }

  // The outline of a box, drawn inwards, with its name above it, or at the top of the image if there is no room; parts
  // outside the image are clipped.
  void Outline(const float* box, const Color& color, const std::string& name) {
    if (!std::all_of(box, box + 4, [](float edge) { return std::isfinite(edge); })) return;
    int64_t line = std::max<int64_t>(2, std::llround(static_cast<double>(std::max(height, width)) / kLineShare));
    int64_t edges[4];
    for (size_t i = 0; i < 4; ++i) edges[i] = static_cast<int64_t>(std::clamp(box[i], -1e6f, 1e6f));
    auto [left, top, right, bottom] = edges;
    if (left > right || top > bottom) return;
    Fill(left, top, right, top + line - 1, color), Fill(left, bottom - line + 1, right, bottom, color);
    Fill(left, top, left + line - 1, bottom, color), Fill(right - line + 1, top, right, bottom, color);
    int64_t dot = std::max<int64_t>(1, line / 2), step = dot * (kLetterWidth + 1), count = static_cast<int64_t>(name.size());
    int64_t above = std::max<int64_t>(0, top - dot * kLetterHeight - 2 * line);
    Fill(left, above, left + count * step + 2 * line - 1, above + dot * kLetterHeight + 2 * line - 1, color);
    for (int64_t i = 0; i < count; ++i) Letter(name[static_cast<size_t>(i)], left + line + i * step, above + line, dot);
  }

  // A white letter with square dots; a question mark for non-ASCII characters.
  void Letter(char letter, int64_t left, int64_t top, int64_t dot) {
    const char* columns = kLetters + kLetterWidth * ((letter >= ' ' && letter <= '~' ? letter : '?') - ' ');
    for (int64_t x = 0; x < kLetterWidth; ++x) {
      for (int64_t y = 0; y < kLetterHeight; ++y) {
        if (columns[x] >> y & 1) Fill(left + x * dot, top + y * dot, left + (x + 1) * dot - 1, top + (y + 1) * dot - 1, {255, 255, 255});
      }
    }
  }

  // Both edges are included.
  void Fill(int64_t left, int64_t top, int64_t right, int64_t bottom, const Color& color) {
    for (int64_t y = std::max<int64_t>(top, 0); y <= std::min(bottom, height - 1); ++y) {
      for (int64_t x = std::max<int64_t>(left, 0); x <= std::min(right, width - 1); ++x) std::copy(color.begin(), color.end(), At(y, x));
    }
  }

  ffi::Tensor tensor;
  uint8_t* pixels;
  int64_t height, width;
};

// Position of an edge of the image in the net's input frame: `compiler/frontends/processing/geometry.py`.
struct Range {
  int64_t start, length;
};

Range InFrame(const Processing& processing, int64_t frame, int64_t size, double gain) {
  if (processing.resize == "stretch") return {0, frame};
  int64_t length = std::clamp<int64_t>(static_cast<int64_t>(std::nearbyint(static_cast<double>(size) * gain)), 1, frame);
  return {processing.resize == "letterbox" ? (frame - length) / 2 : 0, length};
}

void DrawMasks(const Processing& processing, const Output<uint8_t>& masks, const Scored& found, Canvas* canvas) {
  if (masks.shape[0] != found.scores.shape[0] || masks.shape[1] != processing.rows || masks.shape[2] != processing.columns) {
    throw Error("the module's masks are not as large as what the net reads");
  }
  double gain = std::min(static_cast<double>(processing.rows) / static_cast<double>(canvas->height), static_cast<double>(processing.columns) / static_cast<double>(canvas->width));
  Range rows = InFrame(processing, processing.rows, canvas->height, gain), columns = InFrame(processing, processing.columns, canvas->width, gain);
  for (size_t i = found.count; i-- > 0;) {
    const uint8_t* mask = masks.data + static_cast<int64_t>(i) * processing.rows * processing.columns;
    for (int64_t y = 0; y < canvas->height; ++y) {
      const uint8_t* row = mask + (rows.start + y * rows.length / canvas->height) * processing.columns + columns.start;
      for (int64_t x = 0; x < canvas->width; ++x) {
        if (row[x * columns.length / canvas->width]) Tint(canvas->At(y, x), ColorOf(found.classes.data[i]));
      }
    }
  }
}

Prediction Boxes(const Processing& processing, const Manifest& manifest, const std::vector<ffi::Tensor>& outputs, const ffi::Tensor& image) {
  Scored found = FindScored(manifest, outputs);
  Output<float> boxes = Find<float>(manifest, outputs, "boxes", kFloat, 2);
  if (boxes.shape != std::vector<int64_t>{found.scores.shape[0], 4}) throw Error("the module returns another number of boxes than of scores");
  Output<uint8_t> masks = Find<uint8_t>(manifest, outputs, "masks", kByte, 3, false);
  size_t longest = 4;
  for (size_t i = 0; i < found.count; ++i) longest = std::max(longest, Name(processing, found.classes.data[i]).size());
  Canvas canvas(image);
  if (masks.data) DrawMasks(processing, masks, found, &canvas);
  std::string lines = found.count ? Padded("name", longest) + "  score     left      top    right   bottom" : "nothing was found", list;
  for (size_t i = 0; i < found.count; ++i) {
    const float* box = boxes.data + 4 * i;
    std::string name = Name(processing, found.classes.data[i]), edges;
    lines += "\n" + Padded(name, longest) + Format("  %5.3f", found.scores.data[i]);
    for (size_t edge = 0; edge < 4; ++edge) {
      lines += Format(" %8.1f", box[edge]);
      edges += (edge ? ", " : "") + Number(box[edge]);
    }
    list += (i ? ", " : "") + ("{\"name\": " + JsonText(name)) + ", \"score\": " + Number(found.scores.data[i]) + ", \"box\": [" + edges + "], \"class\": " + std::to_string(found.classes.data[i]) + "}";
  }
  for (size_t i = found.count; i-- > 0;) {
    canvas.Outline(boxes.data + 4 * i, ColorOf(found.classes.data[i]), Name(processing, found.classes.data[i]) + Format(" %.2f", found.scores.data[i]));
  }
  return {lines, "\"width\": " + std::to_string(canvas.width) + ", \"height\": " + std::to_string(canvas.height) + ", \"detections\": [" + list + "]", canvas.tensor};
}

Prediction Classes(const Processing& processing, const Manifest& manifest, const std::vector<ffi::Tensor>& outputs) {
  Scored found = FindScored(manifest, outputs);
  std::string lines, list;
  for (size_t i = 0; i < found.count; ++i) {
    std::string name = Name(processing, found.classes.data[i]);
    lines += (i ? "\n" : "") + Format("%.3f  ", found.scores.data[i]) + name;
    list += (i ? ", " : "") + ("{\"name\": " + JsonText(name)) + ", \"score\": " + Number(found.scores.data[i]) + ", \"class\": " + std::to_string(found.classes.data[i]) + "}";
  }
  return {lines, "\"classes\": [" + list + "]", std::nullopt};
}

Prediction Areas(const Processing& processing, const Manifest& manifest, const std::vector<ffi::Tensor>& outputs, const ffi::Tensor& image) {
  Output<uint8_t> mask = Find<uint8_t>(manifest, outputs, "mask", kByte, 2);
  Canvas canvas(image);
  if (mask.shape != std::vector<int64_t>{canvas.height, canvas.width}) throw Error("the module's mask is not as large as the image");
  std::array<int64_t, 256> counts{}, order;
  for (int64_t y = 0; y < canvas.height; ++y) {
    for (int64_t x = 0; x < canvas.width; ++x) {
      uint8_t number = mask.data[y * canvas.width + x];
      ++counts[number];
      if (number) Tint(canvas.At(y, x), ColorOf(number - 1));
    }
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t left, int64_t right) { return counts[static_cast<size_t>(left)] > counts[static_cast<size_t>(right)]; });
  std::string lines, list;
  for (int64_t number : order) {
    if (!counts[static_cast<size_t>(number)]) break;
    double share = static_cast<double>(counts[static_cast<size_t>(number)]) / static_cast<double>(canvas.height * canvas.width);
    lines += (lines.empty() ? "" : "\n") + Format("%5.1f %%  ", 100 * share) + Name(processing, number);
    list += (list.empty() ? "" : ", ") + ("{\"name\": " + JsonText(Name(processing, number))) + ", \"share\": " + Number(share) + "}";
  }
  return {lines, "\"width\": " + std::to_string(canvas.width) + ", \"height\": " + std::to_string(canvas.height) + ", \"classes\": [" + list + "]", canvas.tensor};
}

Prediction Line(const Processing& processing, const Manifest& manifest, const std::vector<ffi::Tensor>& outputs) {
  Scored found = FindScored(manifest, outputs);
  std::string text;
  for (size_t i = 0; i < found.count; ++i) text += Name(processing, found.classes.data[i]);
  double score = found.count ? std::accumulate(found.scores.data, found.scores.data + found.count, 0.0) / static_cast<double>(found.count) : 0.0;
  return {text + Format(" (%.3f)", score), "\"text\": " + JsonText(text) + ", \"score\": " + Number(score), std::nullopt};
}

}  // namespace

Prediction ReadPrediction(const Processing& processing, const Manifest& manifest, const std::vector<ffi::Tensor>& outputs, const ffi::Tensor& image) {
  if (processing.task == "classify") return Classes(processing, manifest, outputs);
  if (processing.task == "segment") return Areas(processing, manifest, outputs, image);
  if (processing.task == "read") return Line(processing, manifest, outputs);
  if (processing.task == "detect") return Boxes(processing, manifest, outputs, image);
  throw Error("the module's task is " + Quoted(processing.task) + ", which this version does not know", "use a newer runner");
}

std::string PicturePath(const Processing& processing, const std::string& image) {
  std::string name = image.substr(image.find_last_of('/') + 1);
  size_t dot = name.find_last_of('.');
  return name.substr(0, dot == 0 ? std::string::npos : dot) + (processing.task == "detect" ? "-boxes.png" : "-mask.png");
}

}  // namespace tensorwright
