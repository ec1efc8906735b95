// The element types that a module can carry: those of the Python package (artifact/dtypes.py).
#pragma once

#include <dlpack/dlpack.h>

#include <string>

namespace tensorwright {

struct ElementType {
  const char* name;
  const char* storage;  // its name in safetensors; where that has none, the one of a type of the same size
  DLDataType dtype;
  size_t bytes;  // of an element; types of less than a byte take one
};

// Null for an unknown one.
const ElementType* FindElementType(const std::string& name);

// Bytes of an element that safetensors knows by this name; 0 for an unknown one.
size_t StorageBytes(const std::string& storage);

}  // namespace tensorwright
