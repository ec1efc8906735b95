#include "pool_bound.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "library.h"

namespace tensorwright {
namespace {

constexpr size_t kKeptBytes = size_t{64} << 20;  // for sizes that ran; more if a few of the largest size need more
constexpr size_t kKeptLargest = 4;
constexpr size_t kKnownSizes = 4096, kKeptSizes = 8;  // the latter if the C library does not count allocated bytes

// `struct mallinfo2` of the GNU C library since 2.33; other C libraries have no such function.
struct Allocated {
  size_t arena, ordblks, smblks, hblks, hblkhd, usmblks, fsmblks, uordblks, fordblks, keepcost;
};
extern "C" Allocated ReadAllocated(void) __asm__("mallinfo2") __attribute__((weak));

size_t AllocatedBytes() {
  if (!ReadAllocated) return 0;
  Allocated found = ReadAllocated();
  return found.hblkhd + found.uordblks;
}

// Sizes that ran since the pool of this process was cleared.
struct Pool {
  std::mutex mutex;
  std::set<std::vector<int64_t>> sizes;
  std::optional<size_t> base;
  size_t largest = 0;

  bool Knows(const std::vector<int64_t>& run) {
    std::lock_guard<std::mutex> lock(mutex);
    return sizes.count(run) != 0;
  }

  void Add(const std::vector<int64_t>& run, size_t before) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!sizes.insert(run).second) return;
    size_t now = AllocatedBytes();
    if (!base) base = before;
    largest = std::max(largest, now - std::min(now, before));
    if (sizes.size() < 2 || !IsFull(now - std::min(now, *base))) return;
    Global("vm.builtin.memory_manager.clear")();
    sizes.clear();
    base.reset();
    largest = 0;
  }

 private:
  bool IsFull(size_t kept) const {
    return sizes.size() > (ReadAllocated ? kKnownSizes : kKeptSizes) || kept > std::max(kKeptBytes, kKeptLargest * largest);
  }
};

Pool& ThePool() {
  static Pool* pool = new Pool;  // runs may outlive static objects
  return *pool;
}

std::atomic<int64_t> codes{0};

}  // namespace

LastSizes::LastSizes() : code_(codes++) {}

RunOfSizes::RunOfSizes(LastSizes* last, const std::vector<ffi::Tensor>& inputs) : last_(last), sizes_{last->code_} {
  for (const ffi::Tensor& each : inputs) sizes_.insert(sizes_.end(), each.shape().begin(), each.shape().end());
  is_first_ = sizes_ != last->sizes_ && !ThePool().Knows(sizes_);
  if (is_first_) before_ = AllocatedBytes();
}

void RunOfSizes::Ended() {
  if (is_first_) ThePool().Add(sizes_, before_);
  last_->sizes_ = std::move(sizes_);
}

}  // namespace tensorwright
