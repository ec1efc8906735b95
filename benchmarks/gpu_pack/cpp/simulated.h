// The CPU in place of a GPU: kernels that were compiled as C++ by targets/cuda/simulator.py.
#pragma once

#include <memory>
#include <string>

#include "device.h"

namespace tensorwright::pack {

// Kernels of modules that are loaded from now on are those of a shared library, given by its bytes. Its clock is the
// processor's, and a graph is the run itself, so that its times say nothing.
std::unique_ptr<Device> SimulatedDevice(const std::string& kernels);

}  // namespace tensorwright::pack
