// Parameters of equal bytes, kept once: of modules of this process, and of other processes where a folder is named.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "tensors.h"

namespace tensorwright {

// Bytes that several modules read, for as long as one of them holds them.
struct SharedBytes {
  const uint8_t* data;
  size_t size;
  std::shared_ptr<const void> owner;
};

// The bytes that all users of equal ones have in common: these, those of another module that are in use, or a file of the
// folder that TENSORWRIGHT_SHARED_PARAMETERS names (the same files as Python's), which other processes map too. Few bytes
// are not shared. `owner` keeps `data` (64-byte aligned) where it is. Throws Error where the folder is not the user's
// alone, or cannot be written.
std::shared_ptr<const SharedBytes> SharedParameter(const uint8_t* data, size_t size, std::shared_ptr<const void> owner);

struct SharedTensor {
  ffi::Tensor tensor;
  std::shared_ptr<const SharedBytes> bytes;  // what it lies in; null: it is the given one
};

// The same for a tensor of the processor, and for what it lies in besides itself (may be null).
SharedTensor ShareTensor(const ffi::Tensor& tensor, std::shared_ptr<const void> file);

// Asks Linux to hold memory in huge pages, as far as neighbours together fill some: a core that reads parameters first in
// a run walks through the page tables for each page.
void UseHugePages(std::vector<std::pair<const uint8_t*, size_t>> places);

// Gives the whole pages of memory that is not read any more back to the system; they are zero then.
void ForgetPages(const uint8_t* data, size_t size);

}  // namespace tensorwright
