// Deduplicates parameters with equal bytes: of modules in this process, and, with a shared folder, of other processes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "tensors.h"

namespace tensorwright {

// Bytes that several modules read, kept alive while any of them uses them.
struct SharedBytes {
  const uint8_t* data;
  size_t size;
  std::shared_ptr<const void> owner;
};

// The bytes shared by all users of equal ones: these, those of another module that are in use, or a file in the folder
// TENSORWRIGHT_SHARED_PARAMETERS (the same files as Python's), which other processes map, too. Small arrays are not
// shared.
// `owner` keeps `data` (64-byte aligned) in place. Throws Error if other users can access the folder, or it cannot be
// written.
std::shared_ptr<const SharedBytes> SharedParameter(const uint8_t* data, size_t size, std::shared_ptr<const void> owner);

struct SharedTensor {
  ffi::Tensor tensor;
  std::shared_ptr<const SharedBytes> bytes;  // the memory that holds it; null: it is the given one
};

// The same for a CPU tensor, and for the memory that contains it (may be null).
SharedTensor ShareTensor(const ffi::Tensor& tensor, std::shared_ptr<const void> file);

// Asks Linux to back memory with huge pages, as far as neighbors together fill some: the core that first reads
// parameters in a run walks the page tables for each page.
void UseHugePages(std::vector<std::pair<const uint8_t*, size_t>> places);

// Returns the whole pages of memory that is no longer read to the system; they become zero.
void ForgetPages(const uint8_t* data, size_t size);

}  // namespace tensorwright
