// The element types of modules: the same as in the Python package (artifact/dtypes.py).
#pragma once

#include <dlpack/dlpack.h>

#include <string>

namespace tensorwright {

struct ElementType {
  const char* name;
  const char* storage;  // its name in safetensors; without one, the name of a type of the same size
  DLDataType dtype;
  size_t bytes;  // per element; types smaller than a byte use one
};

// Null for an unknown one.
const ElementType* FindElementType(const std::string& name);

// Bytes of an element of the type with this safetensors name; 0 for an unknown one.
size_t StorageBytes(const std::string& storage);

}  // namespace tensorwright
