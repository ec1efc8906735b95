// Checks that a shared library is complete and built for this machine.
#pragma once

#include "file.h"

namespace tensorwright {

// Throws Error unless it is a complete shared library for this processor: its headers, segments and sections are inside
// the file, and no segment needs bytes that the file does not have. Otherwise the system's loader, or later the code,
// would crash.
void CheckElf(Span library);

}  // namespace tensorwright
