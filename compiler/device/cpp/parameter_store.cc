#include "parameter_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "file.h"
#include "sha256.h"

namespace tensorwright {
namespace {

const char* const kFolder = "TENSORWRIGHT_SHARED_PARAMETERS";
constexpr size_t kMinBytes = size_t{16} << 10, kSampled = 256;

using Sample = std::pair<size_t, std::string>;
using Users = std::vector<std::weak_ptr<const SharedBytes>>;

// The size and samples of the bytes; not unique.
Sample SampleOf(const uint8_t* data, size_t size) {
  std::string samples;
  for (size_t at = 0, step = std::max<size_t>(1, size / kSampled); at < size; at += step) samples.push_back(static_cast<char>(data[at]));
  return {size, samples};
}

[[noreturn]] void Unusable(const std::string& path) { throw Error(path + ", of " + kFolder + ", cannot be used: " + std::strerror(errno)); }

void CheckPrivate(const std::string& folder) {
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) Unusable(folder);
  struct stat status;
  if (stat(folder.c_str(), &status) != 0) Unusable(folder);
  if (!S_ISDIR(status.st_mode) || status.st_uid != getuid() || (status.st_mode & 077) != 0) {
    throw Error(folder + ", which " + kFolder + " names, can be read or written by others", "make a folder for this user alone: chmod 700 " + folder);
  }
}

// Writes a file atomically, unless another process wrote it meanwhile.
void Publish(const uint8_t* data, size_t size, const std::string& path) {
  std::string made = path + "." + std::to_string(getpid()) + "." + std::to_string(reinterpret_cast<uintptr_t>(data));
  int file = open(made.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) Unusable(made);
  size_t written = 0;
  while (written < size) {
    ssize_t count = write(file, data + written, size - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) break;
    written += static_cast<size_t>(count);
  }
  bool done = close(file) == 0 && written == size && (link(made.c_str(), path.c_str()) == 0 || errno == EEXIST);
  int problem = errno;
  unlink(made.c_str());
  if (!done) errno = problem, Unusable(path);
}

// The bytes of a file; null unless they equal the given ones.
std::shared_ptr<const SharedBytes> Mapped(const std::string& path, const uint8_t* data, size_t size) {
  int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (file < 0) Unusable(path);
  struct stat status;
  bool fits = fstat(file, &status) == 0 && S_ISREG(status.st_mode) && static_cast<uint64_t>(status.st_size) == size;
  void* memory = fits ? mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  close(file);
  if (memory == MAP_FAILED) return nullptr;
  std::shared_ptr<const void> owner(memory, [size](void* mapping) { munmap(mapping, size); });
  if (std::memcmp(memory, data, size) != 0) return nullptr;  // damaged files are not used
  return std::make_shared<SharedBytes>(SharedBytes{static_cast<const uint8_t*>(memory), size, std::move(owner)});
}

std::shared_ptr<const SharedBytes> InFolder(const uint8_t* data, size_t size) {
  const char* folder = std::getenv(kFolder);
  if (!folder || !*folder) return nullptr;
  CheckPrivate(folder);
  Sha256 hash;
  hash.Update(data, size);
  std::string path = std::string(folder) + "/" + Hex(hash.Finish());
  if (access(path.c_str(), F_OK) != 0) Publish(data, size, path);
  return Mapped(path, data, size);
}

std::mutex store_mutex;

std::map<Sample, Users>& Store() {
  static auto* store = new std::map<Sample, Users>;  // modules may be freed while the process ends
  return *store;
}

}  // namespace

std::shared_ptr<const SharedBytes> SharedParameter(const uint8_t* data, size_t size, std::shared_ptr<const void> owner) {
  auto own = std::make_shared<SharedBytes>(SharedBytes{data, size, std::move(owner)});
  if (size < kMinBytes) return own;
  Sample key = SampleOf(data, size);
  std::lock_guard<std::mutex> lock(store_mutex);
  Users& users = Store()[key];
  users.erase(std::remove_if(users.begin(), users.end(), [](const auto& each) { return each.expired(); }), users.end());
  for (const auto& each : users) {
    auto same = each.lock();
    if (same && std::memcmp(same->data, data, size) == 0) return same;
  }
  std::shared_ptr<const SharedBytes> result = InFolder(data, size);
  if (!result) result = own;
  users.push_back(result);
  return result;
}

SharedTensor ShareTensor(const ffi::Tensor& tensor, std::shared_ptr<const void> file) {
  const DLTensor* given = tensor.GetDLTensorPtr();
  auto data = static_cast<const uint8_t*>(given->data) + given->byte_offset;
  size_t bytes = TensorBytes(*given);
  if (bytes == 0 || reinterpret_cast<uintptr_t>(data) % kAlignment != 0) return {tensor, nullptr};
  auto owner = std::make_shared<std::pair<std::shared_ptr<const void>, ffi::Tensor>>(std::move(file), tensor);
  auto same = SharedParameter(data, bytes, std::move(owner));
  if (same->data == data) return {tensor, same};
  return {NewView(const_cast<uint8_t*>(same->data), {given->shape, given->shape + given->ndim}, given->dtype), same};
}

void UseHugePages(std::vector<std::pair<const uint8_t*, size_t>> places) {
  std::sort(places.begin(), places.end());
  auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (size_t i = 0; i < places.size();) {
    auto begin = reinterpret_cast<uintptr_t>(places[i].first), end = begin + places[i].second;
    // An allocator's headers may be between neighbors.
    for (++i; i < places.size() && reinterpret_cast<uintptr_t>(places[i].first) <= end + page; ++i) {
      end = std::max(end, reinterpret_cast<uintptr_t>(places[i].first) + places[i].second);
    }
    for (int advice : {kHugePages, kCollapse}) AdviseHugePages(reinterpret_cast<const uint8_t*>(begin), end - begin, advice);
  }
}

void ForgetPages(const uint8_t* data, size_t size) {
  auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page, end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace tensorwright
