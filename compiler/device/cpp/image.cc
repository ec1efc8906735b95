#include "image.h"

#include <wuffs.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

namespace tensorwright {
namespace {

const char* const kFormats = "give a PNG, JPEG, GIF or BMP file";

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Decoder = std::unique_ptr<wuffs_base__image_decoder, Free>;

Decoder NewDecoder(Span file, const std::string& path) {
  wuffs_base__slice_u8 head = wuffs_base__make_slice_u8(const_cast<uint8_t*>(file.data), file.size);
  int32_t format = wuffs_base__magic_number_guess_fourcc(head, true);
  wuffs_base__image_decoder* made = nullptr;
  if (format == WUFFS_BASE__FOURCC__PNG) made = wuffs_png__decoder__alloc_as__wuffs_base__image_decoder();
  else if (format == WUFFS_BASE__FOURCC__JPEG) made = wuffs_jpeg__decoder__alloc_as__wuffs_base__image_decoder();
  else if (format == WUFFS_BASE__FOURCC__GIF) made = wuffs_gif__decoder__alloc_as__wuffs_base__image_decoder();
  else if (format == WUFFS_BASE__FOURCC__BMP) made = wuffs_bmp__decoder__alloc_as__wuffs_base__image_decoder();
  else throw Error(path + ": the image cannot be read: " + (format == WUFFS_BASE__FOURCC__WEBP ? "only the Python package reads WebP" : "unknown format"), kFormats);
  if (!made) throw Error(path + ": out of memory");
  return Decoder(made);
}

void Check(wuffs_base__status status, const std::string& path) {
  if (!status.is_ok()) throw Error(path + ": the image cannot be read: " + std::string(status.message()), kFormats);
}

// Zeroed memory, which the system allocates when it is written.
std::unique_ptr<uint8_t, Free> Zeros(uint64_t bytes, const std::string& path) {
  std::unique_ptr<uint8_t, Free> memory;
  if (bytes < SIZE_MAX) memory.reset(static_cast<uint8_t*>(std::calloc(static_cast<size_t>(bytes) + 1, 1)));
  if (!memory) throw Error(path + ": out of memory for its pixels");
  return memory;
}

struct Size {
  int64_t height, width;
};

// The pixels in BGRA (with RGBA, Wuffs swaps colors of narrow JPEG files). `size` is set before their memory is
// allocated.
std::unique_ptr<uint8_t, Free> Decoded(Span file, const std::string& path, Size* size) {
  Decoder decoder = NewDecoder(file, path);
  wuffs_base__io_buffer source = wuffs_base__ptr_u8__reader(const_cast<uint8_t*>(file.data), file.size, true);
  wuffs_base__image_config config = wuffs_base__null_image_config();
  Check(decoder->decode_image_config(&config, &source), path);
  uint32_t height = config.pixcfg.height(), width = config.pixcfg.width();
  *size = {height, width};
  if (!height || !width) throw Error(path + ": the image has no pixels");
  if (size->height * size->width > kMaxPixels) {
    throw Error(path + ": the image has " + std::to_string(width) + " x " + std::to_string(height) + " pixels, and at most " + std::to_string(kMaxPixels) + " are read");
  }
  config.pixcfg.set(WUFFS_BASE__PIXEL_FORMAT__BGRA_NONPREMUL, WUFFS_BASE__PIXEL_SUBSAMPLING__NONE, width, height);
  uint64_t bytes = config.pixcfg.pixbuf_len(), work = decoder->workbuf_len().max_incl;
  auto pixels = Zeros(bytes, path), scratch = Zeros(work, path);
  wuffs_base__pixel_buffer buffer = wuffs_base__null_pixel_buffer();
  Check(buffer.set_from_slice(&config.pixcfg, wuffs_base__make_slice_u8(pixels.get(), static_cast<size_t>(bytes))), path);
  Check(decoder->decode_frame(&buffer, &source, WUFFS_BASE__PIXEL_BLEND__SRC, wuffs_base__make_slice_u8(scratch.get(), static_cast<size_t>(work)), nullptr), path);
  return pixels;
}

// Number at an offset in a span, 0 past its end.
uint32_t NumberAt(Span span, size_t at, size_t bytes, bool big) {
  uint32_t value = 0;
  if (at > span.size || bytes > span.size - at) return 0;
  for (size_t i = 0; i < bytes; ++i) value |= uint32_t{span.data[at + i]} << (8 * (big ? bytes - 1 - i : i));
  return value;
}

Span From(Span span, size_t at) { return at < span.size ? Span{span.data + at, span.size - at} : Span{}; }

bool Begins(Span span, const char* text, size_t length) { return span.size >= length && std::memcmp(span.data, text, length) == 0; }

// The EXIF data in a JPEG file's APP1 segment, or in a PNG file's chunk; empty if there is none.
Span Exif(Span file) {
  if (Begins(file, "\xff\xd8", 2)) {
    for (size_t at = 2; NumberAt(file, at, 1, true) == 0xff;) {
      uint32_t marker = NumberAt(file, at + 1, 1, true), length = NumberAt(file, at + 2, 2, true);
      if (marker == 0xff) {
        ++at;  // padding byte
        continue;
      }
      if (marker == 0xda || length < 2) break;
      Span content = From(file, at + 4);
      if (marker == 0xe1 && Begins(content, "Exif\0\0", 6)) return From({content.data, std::min<size_t>(content.size, length - 2)}, 6);
      at += 2 + length;
    }
  } else if (Begins(file, "\x89PNG", 4)) {
    for (size_t at = 8; at + 8 < file.size;) {
      uint32_t length = NumberAt(file, at, 4, true);
      Span content = From(file, at + 8);
      if (length > content.size) break;
      if (std::memcmp(file.data + at + 4, "eXIf", 4) == 0) return {content.data, length};
      at += size_t{length} + 12;
    }
  }
  return {};
}

// EXIF orientation of the image, 1 to 8: the tag 0x0112 in the EXIF data's first list.
uint32_t Orientation(Span exif) {
  constexpr uint32_t kTag = 0x0112, kEntry = 12, kShort = 3, kLong = 4;
  bool big = Begins(exif, "MM", 2);
  if (!big && !Begins(exif, "II", 2)) return 1;
  size_t list = NumberAt(exif, 4, 4, big);
  uint32_t count = NumberAt(exif, list, 2, big);
  for (size_t i = 0; i < count; ++i) {
    size_t entry = list + 2 + i * kEntry;
    uint32_t type = NumberAt(exif, entry + 2, 2, big);
    if (NumberAt(exif, entry, 2, big) != kTag || (type != kShort && type != kLong)) continue;
    uint32_t value = NumberAt(exif, entry + 8, type == kShort ? 2 : 4, big);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}

void AppendBig(std::string* text, uint32_t number) {
  for (int shift = 24; shift >= 0; shift -= 8) text->push_back(static_cast<char>(number >> shift));
}

template <typename Hasher>
uint32_t Checksum(std::string* text) {
  auto hasher = Hasher::alloc();
  if (!hasher) throw Error("out of memory for a PNG file");
  return hasher->update_u32(wuffs_base__make_slice_u8(reinterpret_cast<uint8_t*>(text->data()), text->size()));
}

void AppendChunk(std::string* file, const char* kind, const std::string& content) {
  AppendBig(file, static_cast<uint32_t>(content.size()));
  std::string checked = kind + content;
  *file += checked;
  AppendBig(file, Checksum<wuffs_crc32__ieee_hasher>(&checked));
}

// A zlib stream of stored blocks.
std::string Stored(std::string* content) {
  constexpr size_t kMax = 65535;
  std::string result("\x78\x01", 2);
  for (size_t at = 0; at < content->size(); at += kMax) {
    size_t length = std::min(kMax, content->size() - at);
    bool last = at + length == content->size();
    result.push_back(last ? 1 : 0);
    for (size_t each : {length, ~length}) result.push_back(static_cast<char>(each & 0xff)), result.push_back(static_cast<char>((each >> 8) & 0xff));
    result.append(*content, at, length);
  }
  AppendBig(&result, Checksum<wuffs_adler32__hasher>(content));
  return result;
}

}  // namespace

ffi::Tensor ReadImage(Span file, const std::string& path) {
  Size size;
  auto pixels = Decoded(file, path, &size);
  uint32_t orientation = Orientation(Exif(file));
  bool swapped = orientation >= 5;
  bool from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  int64_t height = swapped ? size.width : size.height, width = swapped ? size.height : size.width;
  ffi::Tensor result = NewTensor({height, width, 3}, {kDLUInt, 8, 1});
  uint8_t* to = static_cast<uint8_t*>(result.data_ptr());
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x, to += 3) {
      int64_t row = swapped ? x : y, column = swapped ? y : x;
      if (from_below) row = size.height - 1 - row;
      if (from_right) column = size.width - 1 - column;
      const uint8_t* from = pixels.get() + 4 * (row * size.width + column);
      std::reverse_copy(from, from + 3, to);
    }
  }
  return result;
}

void WritePng(const std::string& path, const ffi::Tensor& pixels) {
  int64_t height = pixels.shape()[0], width = pixels.shape()[1];
  size_t row = static_cast<size_t>(3 * width);
  std::string head, filtered, file("\x89PNG\r\n\x1a\n", 8);
  AppendBig(&head, static_cast<uint32_t>(width)), AppendBig(&head, static_cast<uint32_t>(height));
  head += std::string("\x08\x02\0\0\0", 5);  // bits, RGB
  for (int64_t y = 0; y < height; ++y) {
    filtered.push_back(0);
    filtered.append(static_cast<const char*>(pixels.data_ptr()) + static_cast<size_t>(y) * row, row);
  }
  AppendChunk(&file, "IHDR", head);
  AppendChunk(&file, "IDAT", Stored(&filtered));
  AppendChunk(&file, "IEND", "");
  WriteFile(path, file);
}

}  // namespace tensorwright
