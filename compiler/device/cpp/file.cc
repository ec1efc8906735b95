#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>

namespace tensorwright {
namespace {

constexpr size_t kAtOnce = size_t{1} << 30;

class Descriptor {
 public:
  // O_NONBLOCK: a pipe must not block the program before it is rejected.
  explicit Descriptor(const std::string& path) : number_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (number_ < 0) throw Error(path + ": " + std::strerror(errno));
  }
  ~Descriptor() { close(number_); }
  Descriptor(const Descriptor&) = delete;
  int number() const { return number_; }

 private:
  int number_;
};

}  // namespace

void FileBytes::Free::operator()(uint8_t* memory) const { std::free(memory); }

FileBytes::FileBytes(const std::string& path) {
  Descriptor file(path);
  struct stat status;
  if (fstat(file.number(), &status) != 0) throw Error(path + ": " + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) throw Error(path + " is not a regular file");
  if (static_cast<uint64_t>(status.st_size) > std::numeric_limits<size_t>::max() - kAlignment) throw Error(path + " is larger than memory");
  size_ = static_cast<size_t>(status.st_size);
  memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, (size_ / kAlignment + 1) * kAlignment)));
  if (!memory_) throw Error(path + ": out of memory for its " + std::to_string(size_) + " bytes");
  AdviseHugePages(memory_.get(), size_, kHugePages);
  for (size_t position = 0; position < size_;) {
    ssize_t count = read(file.number(), memory_.get() + position, std::min(size_ - position, kAtOnce));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw Error(path + ": " + std::strerror(errno));
    if (count == 0) throw Error(path + " was truncated while it was read", "copy it again");
    position += static_cast<size_t>(count);
  }
}

void AdviseHugePages(const uint8_t* data, size_t size, int advice) {
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  auto address = reinterpret_cast<uintptr_t>(data);
  uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + size) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file << content;
  if (!file.flush()) throw Error(path + " cannot be written");
}

}  // namespace tensorwright
