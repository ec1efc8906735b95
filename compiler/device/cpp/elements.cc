#include "elements.h"

#include <cmath>
#include <cstring>

namespace tensorwright {
namespace {

double FromHalf(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits & 0x8000 ? -value : value;
}

template <typename T>
double As(const void* data, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * sizeof(T), sizeof(T));
  return static_cast<double>(value);
}

uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

uint16_t ToHalf(float value) {
  uint32_t bits = FloatBits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(std::ldexp(std::abs(value), 24))));
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
}

uint16_t ToBfloat(float value) {
  uint32_t bits = FloatBits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <typename T>
void Put(void* data, int64_t index, double value) {
  T stored = static_cast<T>(value);
  std::memcpy(static_cast<char*>(data) + index * static_cast<int64_t>(sizeof(T)), &stored, sizeof(T));
}

}  // namespace

double ElementOf(const DLTensor& tensor, int64_t index) {
  const void* data = tensor.data;
  int bits = tensor.dtype.bits;
  switch (tensor.dtype.code) {
    case kDLFloat:
      return bits == 64 ? As<double>(data, index) : bits == 32 ? As<float>(data, index) : FromHalf(static_cast<const uint16_t*>(data)[index]);
    case kDLBfloat: {
      uint32_t wide = uint32_t{static_cast<const uint16_t*>(data)[index]} << 16;
      return As<float>(&wide, 0);
    }
    case kDLInt:
      return bits == 64 ? As<int64_t>(data, index) : bits == 32 ? As<int32_t>(data, index) : bits == 16 ? As<int16_t>(data, index) : As<int8_t>(data, index);
    default:
      return bits == 64 ? As<uint64_t>(data, index) : bits == 32 ? As<uint32_t>(data, index) : bits == 16 ? As<uint16_t>(data, index) : As<uint8_t>(data, index);
  }
}

void StoreElement(const ffi::Tensor& tensor, int64_t index, double value) {
  void* data = tensor.data_ptr();
  DLDataType dtype = tensor.dtype();
  bool is_unsigned = dtype.code == kDLUInt || dtype.code == kDLBool;
  if (dtype.code == kDLBfloat) {
    static_cast<uint16_t*>(data)[index] = ToBfloat(static_cast<float>(value));
  } else if (dtype.code == kDLFloat && dtype.bits == 16) {
    static_cast<uint16_t*>(data)[index] = ToHalf(static_cast<float>(value));
  } else if (dtype.code == kDLFloat) {
    dtype.bits == 64 ? Put<double>(data, index, value) : Put<float>(data, index, value);
  } else if (dtype.bits == 8) {
    is_unsigned ? Put<uint8_t>(data, index, value) : Put<int8_t>(data, index, value);
  } else if (dtype.bits == 16) {
    is_unsigned ? Put<uint16_t>(data, index, value) : Put<int16_t>(data, index, value);
  } else if (dtype.bits == 32) {
    is_unsigned ? Put<uint32_t>(data, index, value) : Put<int32_t>(data, index, value);
  } else {
    is_unsigned ? Put<uint64_t>(data, index, value) : Put<int64_t>(data, index, value);
  }
}

}  // namespace tensorwright
