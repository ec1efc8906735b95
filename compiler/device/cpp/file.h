// Reads whole files into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "error.h"

namespace tensorwright {

// Alignment of tensors in memory, as generated code requires, and of the sections of a module file.
constexpr size_t kAlignment = 64;

struct Span {
  const uint8_t* data = nullptr;
  size_t size = 0;
};

// Advices of Linux: to use huge pages where memory is written first, and to make them of memory that is in use (since 6.1).
constexpr int kHugePages = 14, kCollapse = 25;

// Advises Linux on the whole huge pages of a piece of memory: a core that reads parameters first in a run walks through the page
// tables for each page.
void AdviseHugePages(const uint8_t* data, size_t size, int advice);

// The bytes of a file, copied into this process's memory, so that they cannot change after they were checked. Aligned as
// tensors are, in huge pages where the system allows.
class FileBytes {
 public:
  // Throws Error unless it is a regular file that can be read as a whole.
  explicit FileBytes(const std::string& path);
  Span span() const { return {memory_.get(), size_}; }

 private:
  struct Free {
    void operator()(uint8_t* memory) const;
  };

  std::unique_ptr<uint8_t, Free> memory_;
  size_t size_ = 0;
};

// Throws Error where the file cannot be written.
void WriteFile(const std::string& path, const std::string& content);

}  // namespace tensorwright
