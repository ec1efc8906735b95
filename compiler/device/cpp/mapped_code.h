// Loads shared libraries without the dynamic loader.
#pragma once

#include <memory>
#include <string>

#include "file.h"

extern "C" {
struct tensorwright_symbol {
  const char* name;
  void* address;
};
extern const tensorwright_symbol tensorwright_symbols[];  // ends with a null name
}

namespace tensorwright {

// A shared library, mapped and relocated; undefined symbols are resolved from `tensorwright_symbols`.
//
// Supports the subset of ELF that the compiler's linkers emit and rejects anything else; only the library's own memory
// is read or written for it. Exceptions do not pass through its code: it returns error codes.
class MappedCode {
 public:
  // Throws Error. `library` is no longer needed afterwards.
  explicit MappedCode(Span library);
  ~MappedCode();

  // The address of the library's definition with this name; null if there is none.
  void* Find(const std::string& name) const;

 private:
  class Image;
  std::unique_ptr<Image> image_;
};

}  // namespace tensorwright
