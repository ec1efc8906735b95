#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "elements.h"
#include "generator.h"

namespace tensorwright::pack {
namespace {

constexpr double kPeak = 8;  // an error that is normal reaches 8 times its deviation once in 10^15
constexpr double kTiny = 1e-30;

uint16_t ToHalf(double value) {
  uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  double magnitude = std::abs(value);
  if (std::isnan(value)) return 0x7E00;
  if (magnitude >= 65520) return sign | 0x7C00;
  int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
  double steps = std::nearbyint(std::ldexp(magnitude, 10 - exponent));  // of the last place; the rounding mode is to nearest even
  return static_cast<uint16_t>(sign | static_cast<uint16_t>((exponent + 14) * 1024 + static_cast<int>(steps)));
}

uint16_t ToBfloat(double value) {
  float single = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &single, sizeof bits);
  if (std::isnan(single)) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

template <typename T>
void Set(void* data, int64_t index, double value) {
  T converted = static_cast<T>(value);
  std::memcpy(static_cast<char*>(data) + static_cast<size_t>(index) * sizeof(T), &converted, sizeof(T));
}

int64_t Count(const DLTensor& tensor) {
  int64_t count = 1;
  for (int i = 0; i < tensor.ndim; ++i) count *= tensor.shape[i];
  return count;
}

}  // namespace

Writer::Writer(const DLTensor& tensor) : tensor_(tensor), size_(Count(tensor)) {}

void Writer::Put(int64_t index, double value) {
  void* data = tensor_.data;
  int bits = tensor_.dtype.bits;
  switch (tensor_.dtype.code) {
    case kDLFloat:
      if (bits == 16) return static_cast<void>(static_cast<uint16_t*>(data)[index] = ToHalf(value));
      return bits == 64 ? Set<double>(data, index, value) : Set<float>(data, index, value);
    case kDLBfloat:
      static_cast<uint16_t*>(data)[index] = ToBfloat(value);
      return;
    case kDLInt:
      return bits == 64 ? Set<int64_t>(data, index, value) : bits == 32 ? Set<int32_t>(data, index, value) : bits == 16 ? Set<int16_t>(data, index, value) : Set<int8_t>(data, index, value);
    default:
      return bits == 64 ? Set<uint64_t>(data, index, value) : bits == 32 ? Set<uint32_t>(data, index, value) : bits == 16 ? Set<uint16_t>(data, index, value) : Set<uint8_t>(data, index, value);
  }
}

std::vector<double> Summary::Packed() const {
  std::vector<double> values{rms, largest, not_numbers};
  values.insert(values.end(), samples.begin(), samples.end());
  return values;
}

Summary Summary::Unpacked(const double* values, size_t samples) { return {values[0], values[1], values[2], {values + kHead, values + kHead + samples}}; }

Summary Summarize(const DLTensor& tensor, uint64_t seed, int64_t samples) {
  Summary made;
  int64_t count = Count(tensor);
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    double value = ElementOf(tensor, i);
    if (std::isnan(value)) {
      ++made.not_numbers;
    } else {
      squares += value * value;
      made.largest = std::max(made.largest, std::abs(value));
    }
  }
  made.rms = count ? std::sqrt(squares / static_cast<double>(count)) : 0;
  for (int64_t place : Positions(seed, samples, count)) made.samples.push_back(ElementOf(tensor, place));
  return made;
}

Tolerance Tolerance::Parse(const JsonValue& value) { return {value["relative"].Amount(), value["absolute"].Amount(), value["rms"].Amount()}; }

Difference Compare(const Summary& found, const Summary& expected, const Tolerance& tolerance) {
  Difference made;
  double squares = 0;
  int64_t apart = 0;
  if (found.not_numbers != expected.not_numbers) made.words = std::to_string(static_cast<int64_t>(found.not_numbers)) + " elements are NaN, not " + std::to_string(static_cast<int64_t>(expected.not_numbers));
  double scale = std::max(expected.rms, kTiny), allowed = tolerance.absolute + tolerance.relative * std::max(1.0, expected.largest);
  if (tolerance.rms > 0) allowed = kPeak * tolerance.rms * scale;
  for (size_t i = 0; i < expected.samples.size(); ++i) {
    double left = found.samples[i], right = expected.samples[i];
    if (left == right || (std::isnan(left) && std::isnan(right))) continue;
    double here = std::abs(left - right);
    if (!(here <= allowed)) ++apart;
    here = std::isnan(here) ? INFINITY : here;
    made.largest = std::max(made.largest, here), squares += here * here;
  }
  made.rms = expected.samples.empty() ? 0 : std::sqrt(squares / static_cast<double>(expected.samples.size())) / scale;
  char text[200];
  auto say = [&](const char* form, double a, double b) {
    if (!made.words.empty()) return;
    std::snprintf(text, sizeof text, form, a, b);
    made.words = text;
  };
  if (apart) say("%.0f compared elements differ, by up to %.3g", static_cast<double>(apart), made.largest);
  if (tolerance.rms > 0 && !(made.rms <= tolerance.rms)) say("the difference is %.3g of the result, more than %.3g", made.rms, tolerance.rms);
  // The norms of the whole tensor, which samples do not show.
  double norm = tolerance.rms > 0 ? tolerance.rms * scale : allowed;
  if (!(std::abs(found.rms - expected.rms) <= norm)) say("its root mean square is %.6g, not %.6g", found.rms, expected.rms);
  if (!(std::abs(found.largest - expected.largest) <= allowed)) say("its largest magnitude is %.6g, not %.6g", found.largest, expected.largest);
  made.right = made.words.empty();
  return made;
}

}  // namespace tensorwright::pack
