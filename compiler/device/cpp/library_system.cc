// By the system's loader: from anonymous memory; from a temporary file where the system forbids that.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "library.h"

namespace tensorwright {
namespace {

void WriteAll(int descriptor, Span data) {
  while (data.size) {
    ssize_t written = write(descriptor, data.data, data.size);
    if (written <= 0) throw Error("the module's code could not be written to memory");
    data = {data.data + written, data.size - static_cast<size_t>(written)};
  }
}

}  // namespace

ffi::Module LoadLibrary(Span library) {
  ffi::Function load = Global("ffi.Module.load_from_file.so");
  int descriptor = memfd_create("tensorwright-module", MFD_CLOEXEC);
  if (descriptor >= 0) {
    WriteAll(descriptor, library);
    // No two libraries of a process may have the same path: the loader would take them for one. So it stays open.
    std::string path = "/proc/self/fd/" + std::to_string(descriptor);
    try {
      return load(path, "so").cast<ffi::Module>();
    } catch (const std::exception&) {
      close(descriptor);
    }
  }
  char path[] = "/tmp/tensorwright-XXXXXX.so";
  descriptor = mkstemps(path, 3);
  if (descriptor < 0) throw Error("the module's code could not be written to /tmp");
  WriteAll(descriptor, library);
  close(descriptor);
  ffi::Module module = load(std::string(path), "so").cast<ffi::Module>();
  unlink(path);
  return module;
}

}  // namespace tensorwright
