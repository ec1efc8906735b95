// TVM's JSON parser, compiled with sanitizers in place of the one in its library, which keeps the registered name.
#include <tvm/ffi/reflection/registry.h>

#undef TVM_FFI_STATIC_INIT_BLOCK
#define TVM_FFI_STATIC_INIT_BLOCK() [[maybe_unused]] static void NotRegistered()
#include "json_parser.cc"
