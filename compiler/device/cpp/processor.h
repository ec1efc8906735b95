// Features of this processor, by their names in modules' manifests (LLVM's).
#pragma once

#include <string>
#include <vector>

namespace tensorwright {

// "x86_64", "aarch64", "armv7" or "riscv64".
const char* Architecture();

// The known extensions that the processor and the system support.
std::vector<std::string> ProcessorFeatures();

// The members of `required` that are missing; unknown ones count as missing.
std::vector<std::string> MissingFeatures(const std::vector<std::string>& required);

}  // namespace tensorwright
