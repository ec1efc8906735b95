// Checks that a shared library is complete and built for this machine.
#pragma once

#include "file.h"

namespace tensorwright {

// Throws Error unless it is a whole shared library for this processor: its headers, segments and sections lie in the file,
// and no segment needs bytes that the file does not have. A system's loader would crash on such a file, or later the code.
void CheckElf(Span library);

}  // namespace tensorwright
