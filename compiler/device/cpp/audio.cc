#include "audio.h"

#include <algorithm>
#include <cstring>
#include <string_view>

namespace tensorwright {
namespace {

constexpr size_t kMaxSamples = size_t{1} << 28;
constexpr uint32_t kWaveIntegers = 1, kWaveExtensible = 0xfffe;
constexpr size_t kWaveSubformat = 24;  // offset of the actual format in an extensible format

// Little-endian, on every processor.
uint32_t LittleEndian(const uint8_t* at, size_t bytes) {
  uint32_t value = 0;
  for (size_t i = bytes; i-- > 0;) value = value << 8 | at[i];
  return value;
}

struct WaveChunks {
  Span format, data;
};

// The relevant chunks; one that is longer than the file, like that of a recording through a pipe, ends with the file.
WaveChunks FindChunks(Span file) {
  WaveChunks found;
  for (size_t at = 12; at + 8 <= file.size;) {
    size_t size = std::min<size_t>(LittleEndian(file.data + at + 4, 4), file.size - at - 8);
    std::string_view name(reinterpret_cast<const char*>(file.data + at), 4);
    Span content{file.data + at + 8, size};
    if (name == "fmt ") found.format = content;
    if (name == "data") {
      found.data = content;
      break;
    }
    at += 8 + size + size % 2;
  }
  return found;
}

float SampleAt(const uint8_t* at, size_t width) {
  if (width == 1) return (static_cast<float>(*at) - 128) / 128;
  auto value = static_cast<int32_t>(LittleEndian(at, width) << (32 - 8 * width));
  return static_cast<float>(static_cast<double>(value) / 2147483648.0);
}

}  // namespace

std::vector<float> ReadWave(Span file, const std::string& path, int64_t rate) {
  const std::string convert = "convert it: ffmpeg -i IN -ac 1 -ar " + std::to_string(rate) + " -c:a pcm_s16le OUT.wav";
  bool riff = file.size > 12 && !std::memcmp(file.data, "RIFF", 4) && !std::memcmp(file.data + 8, "WAVE", 4);
  WaveChunks chunks = riff ? FindChunks(file) : WaveChunks{};
  if (chunks.format.size < 16) throw Error(path + " is not a WAV file", convert);
  const uint8_t* format = chunks.format.data;
  uint32_t kind = LittleEndian(format, 2);
  if (kind == kWaveExtensible && chunks.format.size >= kWaveSubformat + 2) kind = LittleEndian(format + kWaveSubformat, 2);
  size_t channels = LittleEndian(format + 2, 2), bits = LittleEndian(format + 14, 2), width = (bits + 7) / 8;
  if (kind != kWaveIntegers || !channels || !width || width > 4) throw Error(path + " is not a WAV file of integers of at most 32 bits", convert);
  if (LittleEndian(format + 4, 4) != static_cast<uint64_t>(rate)) {
    throw Error(path + " has " + std::to_string(LittleEndian(format + 4, 4)) + " samples a second, and the module reads " + std::to_string(rate), convert);
  }
  size_t count = chunks.data.size / (channels * width);
  if (!count) throw Error(path + " holds no samples");
  if (count * channels > kMaxSamples) throw Error(path + " holds more than " + std::to_string(kMaxSamples) + " samples", "split it into parts");
  std::vector<float> samples(count);
  const uint8_t* at = chunks.data.data;
  for (float& sample : samples) {
    float total = 0;
    for (size_t channel = 0; channel < channels; ++channel, at += width) total += SampleAt(at, width);
    sample = total / static_cast<float>(channels);
  }
  return samples;
}

}  // namespace tensorwright
