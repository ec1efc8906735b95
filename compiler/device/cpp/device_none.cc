// For static programs, which cannot load a GPU's driver.
#include "device.h"

namespace tensorwright {

std::unique_ptr<Device> DeviceFor(const Manifest& manifest, uint64_t) {
  if (manifest.device_kind.empty()) return std::make_unique<Device>();
  throw Error("the module needs a GPU, whose driver a static program cannot load", "use the programs of a bundle");
}

}  // namespace tensorwright
