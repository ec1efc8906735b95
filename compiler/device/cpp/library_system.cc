// Loads libraries with the dynamic loader: from anonymous memory, or from a temporary file if that is forbidden.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <future>
#include <thread>

#include "library.h"

namespace tensorwright {
namespace {

// A file that code is loaded from, removed with this object: loaded code stays mapped.
class CodeFile {
 public:
  CodeFile(int descriptor, std::string path, bool is_named) : descriptor_(descriptor), path_(std::move(path)), is_named_(is_named) {}
  CodeFile(const CodeFile&) = delete;
  ~CodeFile() {
    if (is_named_) unlink(path_.c_str());
    close(descriptor_);
  }

  void Write(Span data) const {
    while (data.size) {
      ssize_t written = write(descriptor_, data.data, data.size);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) throw Error("the module's code could not be written to memory or to /tmp");
      data = {data.data + written, data.size - static_cast<size_t>(written)};
    }
  }

  ffi::Module Load() const { return Global("ffi.Module.load_from_file.so")(path_, "so").cast<ffi::Module>(); }

 private:
  int descriptor_;
  std::string path_;
  bool is_named_;
};

// A folder of this process's descriptors in /proc, that of a thread which ends with this object.
//
// When an exception is thrown, TVM opens each loaded library again, by its path, for the names of its functions. By then,
// the descriptor's number may be that of a file that is being written; reading an empty one as a library ends the process
// (SIGBUS).
class PassingDescriptors {
 public:
  PassingDescriptors() : thread_([this] { Wait(); }) {}
  PassingDescriptors(const PassingDescriptors&) = delete;
  ~PassingDescriptors() {
    done_.set_value();
    thread_.join();
  }

  // A path to the descriptor that no other load uses: the dynamic loader identifies a library by its path, even if the
  // thread's and the descriptor's numbers were reused for others. "/./" and "//" encode a counter in binary, and are
  // ignored by the kernel. The prefix differs from the Python package's, so both can be in one process.
  std::string UniquePath(int descriptor) {
    static std::atomic<unsigned> loads{1};
    std::string path = "/" + std::to_string(descriptor);
    for (unsigned count = loads++; count; count >>= 1) path = (count & 1 ? "/." : "/") + path;
    return "/proc/./" + link_.get_future().get() + "/fd" + path;
  }

 private:
  void Wait() {
    char link[64];
    ssize_t length = readlink("/proc/thread-self", link, sizeof link);
    link_.set_value(std::string(link, length > 0 ? static_cast<size_t>(length) : 0));
    done_.get_future().wait();
  }

  std::promise<std::string> link_;
  std::promise<void> done_;
  std::thread thread_;  // begins last
};

// True if a loader's message means that the system forbids running code from anonymous memory.
bool IsForbidden(const std::string& message) {
  return message.find("failed to map segment") != std::string::npos || message.find("Operation not permitted") != std::string::npos;
}

ffi::Module LoadFromFolder(Span library) {
  char path[] = "/tmp/tensorwright-XXXXXX.so";
  int descriptor = mkostemps(path, 3, O_CLOEXEC);
  if (descriptor < 0) throw Error("the module's code could not be written to /tmp");
  CodeFile file(descriptor, path, true);
  file.Write(library);
  return file.Load();
}

}  // namespace

ffi::Module LoadLibrary(Span library) {
  int descriptor = memfd_create("tensorwright-module", MFD_CLOEXEC);
  if (descriptor < 0) return LoadFromFolder(library);
  PassingDescriptors descriptors;
  CodeFile file(descriptor, descriptors.UniquePath(descriptor), false);
  file.Write(library);
  try {
    return file.Load();
  } catch (const std::exception& error) {
    if (!IsForbidden(error.what())) throw Error(std::string("the module's machine code could not be loaded: ") + error.what(), "export the module again");
  }
  return LoadFromFolder(library);
}

}  // namespace tensorwright
