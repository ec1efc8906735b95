// Reads whole files into memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "error.h"

namespace tensorwright {

// Alignment of tensors in memory, as required by generated code, and of the sections of a module file.
constexpr size_t kAlignment = 64;

struct Span {
  const uint8_t* data = nullptr;
  size_t size = 0;
};

// Linux's madvise constants: use huge pages for memory when it is first written, and convert memory in use (since 6.1).
constexpr int kHugePages = 14, kCollapse = 25;

// Calls madvise for the whole huge pages in a piece of memory: the core that first reads parameters in a run walks the
// page tables for each page.
void AdviseHugePages(const uint8_t* data, size_t size, int advice);

// The bytes of a file, copied to this process's memory, so that they cannot change after they were checked. Aligned
// like tensors, in huge pages if the system permits.
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

// Throws Error if the file cannot be written.
void WriteFile(const std::string& path, const std::string& content);

}  // namespace tensorwright
