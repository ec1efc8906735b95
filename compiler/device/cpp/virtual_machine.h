// TVM's virtual machine for the code of a module.
#pragma once

#include <tvm/ffi/extra/module.h>

#include <string>
#include <vector>

#include "error.h"

namespace tensorwright {

namespace ffi = tvm::ffi;

// A function of a module's code, by name. Throws Error.
inline ffi::Function FunctionOf(const ffi::Module& module, const char* name) {
  auto found = module->GetFunction(name, true);
  if (!found) throw Error(std::string("the module's code has no function ") + name, "compile the model again");
  return *found;
}

// A virtual machine that runs an executable on devices of these types and numbers.
inline ffi::Module NewMachine(const ffi::Module& executable, const std::vector<int>& places) {
  auto machine = FunctionOf(executable, "vm_load_executable")().cast<ffi::Module>();
  std::vector<ffi::AnyView> arguments(places.begin(), places.end());
  ffi::Any result;
  FunctionOf(machine, "vm_initialization").CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
  return machine;
}

// `main` as a function of only the inputs.
inline ffi::Function BindParameters(const ffi::Module& machine, const std::vector<ffi::Tensor>& parameters) {
  std::vector<ffi::AnyView> bound{"main", "bound_main", 1};
  bound.insert(bound.end(), parameters.begin(), parameters.end());
  ffi::Any result;
  FunctionOf(machine, "save_function").CallPacked(bound.data(), static_cast<int32_t>(bound.size()), &result);
  return FunctionOf(machine, "bound_main");
}

}  // namespace tensorwright
