// The machine code of a module: a shared library, loaded from memory.
#pragma once

#include <tvm/ffi/extra/module.h>

#include "file.h"

namespace tensorwright {

namespace ffi = tvm::ffi;

// One of two implementations: with the system's loader (library_system.cc), or without it, for static programs
// (library_mapped.cc).
ffi::Module LoadLibrary(Span library);

// A function of the runtime, by name. Throws Error.
ffi::Function Global(const char* name);

}  // namespace tensorwright
