#include "simulated.h"

#include <chrono>

#include "library.h"

namespace tensorwright::pack {
namespace {

class Simulated final : public Device {
 public:
  std::string Name() const final { return "simulated"; }

  DeviceTimes Time(const std::function<void()>& run, int runs, bool) const final {
    DeviceTimes times;
    for (int i = 0; i < runs; ++i) {
      auto start = std::chrono::steady_clock::now();
      run();
      times.host.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
      times.device.push_back(times.host.back());
    }
    return times;
  }
};

}  // namespace

std::unique_ptr<Device> SimulatedDevice(const std::string& kernels) {
  ffi::Module library = LoadLibrary({reinterpret_cast<const uint8_t*>(kernels.data()), kernels.size()});
  auto load = [library](const ffi::Bytes&) { return library; };
  ffi::Function::SetGlobal("ffi.Module.load_from_bytes.cuda", ffi::Function::FromTyped(load), true);
  return std::make_unique<Simulated>();
}

}  // namespace tensorwright::pack
