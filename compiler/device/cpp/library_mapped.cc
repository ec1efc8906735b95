// Loads libraries without the dynamic loader, which a static program does not have.
#include "library.h"
#include "mapped_code.h"
#include "module_internal.h"

namespace tensorwright {
namespace {

class MappedLibrary final : public tvm::ffi::Library {
 public:
  explicit MappedLibrary(Span file) : code_(file) {}
  void* GetSymbol(const ffi::String& name) final { return code_.Find(std::string(name)); }

 private:
  MappedCode code_;
};

}  // namespace

ffi::Module LoadLibrary(Span library) { return tvm::ffi::CreateLibraryModule(ffi::make_object<MappedLibrary>(library)); }

}  // namespace tensorwright
