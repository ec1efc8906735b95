#include "storage.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace tensorwright {
namespace {

const char* const kActive = "active.twm";
const char* const kRejected = "rejected.twm";
const char* const kIncoming = "incoming-";  // prefix of scratch folders

[[noreturn]] void Failed(const std::string& what) { throw Error(what + ": " + std::strerror(errno)); }

int RemoveEntry(const char* path, const struct stat*, int, FTW*) { return remove(path); }

void RemoveTree(const std::string& path) { nftw(path.c_str(), RemoveEntry, 8, FTW_DEPTH | FTW_PHYS); }

// Held while the active module is checked and moved, so that no session moves one that another has just activated.
class FolderLock {
 public:
  explicit FolderLock(const std::string& folder) : descriptor_(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (descriptor_ < 0 || flock(descriptor_, LOCK_EX) != 0) Failed(folder + " could not be locked");
  }
  ~FolderLock() { close(descriptor_); }
  FolderLock(const FolderLock&) = delete;

 private:
  int descriptor_;
};

void Flush(const std::string& path) {
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  bool done = descriptor >= 0 && fsync(descriptor) == 0;
  if (descriptor >= 0) close(descriptor);
  if (!done) Failed(path + " could not be written to the disk");
}

}  // namespace

Storage::Storage(std::string folder) : folder_(std::move(folder)) {
  if (mkdir(folder_.c_str(), 0700) != 0 && errno != EEXIST) Failed(folder_);
  DIR* listing = opendir(folder_.c_str());
  if (!listing) Failed(folder_);
  while (dirent* entry = readdir(listing)) {
    if (std::strncmp(entry->d_name, kIncoming, std::strlen(kIncoming)) == 0) RemoveTree(folder_ + "/" + entry->d_name);
  }
  closedir(listing);
}

std::string Storage::ScratchOf(int process) const { return folder_ + "/" + kIncoming + std::to_string(process); }

std::string Storage::MakeScratch(int process) const {
  std::string path = ScratchOf(process);
  RemoveTree(path);
  if (mkdir(path.c_str(), 0700) != 0) Failed(path);
  return path;
}

void Storage::RemoveScratch(int process) const { RemoveTree(ScratchOf(process)); }

std::string Storage::Active(const TrustedKeys& trusted, std::string* problem) const {
  std::string path = folder_ + "/" + kActive;
  FolderLock lock(folder_);
  if (access(path.c_str(), F_OK) != 0) return "";
  try {
    return Artifact::Open(path, &trusted)->digest;
  } catch (const std::exception& error) {
    *problem = std::string("the active module was moved aside to ") + kRejected + ": " + error.what();
  }
  if (std::rename(path.c_str(), (folder_ + "/" + kRejected).c_str()) != 0) Failed(path + " is not usable and could not be moved aside");
  return "";
}

void Storage::Activate(const std::string& path) const {
  FolderLock lock(folder_);
  Flush(path);  // data must be on disk before the rename, or a power failure leaves an empty file
  if (std::rename(path.c_str(), (folder_ + "/" + kActive).c_str()) != 0) Failed("the module could not be switched");
  Flush(folder_);
}

int CreateFile(const std::string& path, uint64_t size) {
  int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (descriptor < 0) Failed(path);
  int problem = posix_fallocate(descriptor, 0, static_cast<off_t>(size));
  if (problem == 0) return descriptor;
  close(descriptor);
  unlink(path.c_str());
  errno = problem;
  Failed("there is no room for " + std::to_string(size) + " bytes on the device's disk");
}

uint64_t BytesIn(const std::string& folder) {
  uint64_t total = 0;
  DIR* listing = opendir(folder.c_str());
  if (!listing) return 0;
  while (dirent* entry = readdir(listing)) {
    struct stat status;
    if (fstatat(dirfd(listing), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(status.st_mode)) total += static_cast<uint64_t>(status.st_size);
  }
  closedir(listing);
  return total;
}

}  // namespace tensorwright
