#include "dtypes.h"

namespace tensorwright {
namespace {

constexpr ElementType Type(const char* name, const char* storage, int code, int bits) {
  return {name, storage, {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1}, static_cast<size_t>((bits + 7) / 8)};
}

constexpr ElementType kTypes[] = {
    Type("bool", "BOOL", kDLBool, 8),
    Type("int8", "I8", kDLInt, 8),
    Type("int16", "I16", kDLInt, 16),
    Type("int32", "I32", kDLInt, 32),
    Type("int64", "I64", kDLInt, 64),
    Type("uint8", "U8", kDLUInt, 8),
    Type("uint16", "U16", kDLUInt, 16),
    Type("uint32", "U32", kDLUInt, 32),
    Type("uint64", "U64", kDLUInt, 64),
    Type("float16", "F16", kDLFloat, 16),
    Type("float32", "F32", kDLFloat, 32),
    Type("float64", "F64", kDLFloat, 64),
    Type("bfloat16", "BF16", kDLBfloat, 16),
    Type("float8_e4m3fn", "F8_E4M3", kDLFloat8_e4m3fn, 8),
    Type("float8_e5m2", "F8_E5M2", kDLFloat8_e5m2, 8),
    // safetensors has no name for these; the manifest has one.
    Type("float8_e4m3fnuz", "U8", kDLFloat8_e4m3fnuz, 8),
    Type("float8_e5m2fnuz", "U8", kDLFloat8_e5m2fnuz, 8),
    Type("int4", "I8", kDLInt, 4),
    Type("uint4", "U8", kDLUInt, 4),
    Type("int2", "I8", kDLInt, 2),
    Type("uint2", "U8", kDLUInt, 2),
    Type("float4_e2m1fn", "U8", kDLFloat4_e2m1fn, 4),
    Type("float8_e8m0fnu", "U8", kDLFloat8_e8m0fnu, 8),
};

}  // namespace

const ElementType* FindElementType(const std::string& name) {
  for (const ElementType& type : kTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

size_t StorageBytes(const std::string& storage) {
  for (const ElementType& type : kTypes) {
    if (storage == type.storage) return type.bytes;
  }
  return 0;
}

}  // namespace tensorwright
