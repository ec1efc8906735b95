// Shared libraries without the dynamic loader.
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
// Supports what the compiler's linkers emit of the ELF format and refuses anything else; nothing outside of the
// library's own memory is read or written for it. Exceptions do not pass through its code: it returns error codes.
class MappedCode {
 public:
  // Throws Error. `library` is not needed any more afterwards.
  explicit MappedCode(Span library);
  ~MappedCode();

  // The address of what the library defines under this name; null where it does not.
  void* Find(const std::string& name) const;

 private:
  class Image;
  std::unique_ptr<Image> image_;
};

}  // namespace tensorwright
