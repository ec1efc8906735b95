// For programs with a linked module, in a section made by `tensorwright bundle --static`.
#include "linked.h"

extern "C" const uint8_t tensorwright_linked_start[], tensorwright_linked_end[];

namespace tensorwright {

Span LinkedModule() {
  return {tensorwright_linked_start, static_cast<size_t>(tensorwright_linked_end - tensorwright_linked_start)};
}

}  // namespace tensorwright
