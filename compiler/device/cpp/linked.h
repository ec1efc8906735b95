// The module linked into a program, if any.
#pragma once

#include "file.h"

namespace tensorwright {

// Empty unless the program was made by `tensorwright bundle --static`.
Span LinkedModule();

}  // namespace tensorwright
