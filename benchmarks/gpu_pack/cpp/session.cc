#include "session.h"

#include "generator.h"
#include "library.h"
#include "simulated.h"
#include "virtual_machine.h"

namespace tensorwright::pack {
namespace {

constexpr int kSkip = 1;  // what an instrument gives for a call that the virtual machine shall leave out

Span SpanOf(const std::string& bytes) { return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}; }

}  // namespace

Session::Session(const Entry& entry) : entry_(entry) {
  uint64_t bytes = 0;
  std::vector<ffi::Tensor> made;
  for (const JsonValue& each : entry.parameters) {
    made.push_back(MakeTensor(each, SpanOf(entry.stored)));
    bytes += TensorBytes(*made.back().GetDLTensorPtr());
  }
  device_ = entry.simulated.empty() ? DeviceFor(entry.manifest, bytes) : SimulatedDevice(ReadCompressed(entry.simulated));
  for (const ffi::Tensor& each : made) parameters_.push_back(device_->ToDevice(each, nullptr));
  device_->ToHost({});  // waits for the copies, which read `made`
  std::string library = ReadCompressed(entry.folder + "/model.so.gz");
  executable_ = LoadLibrary(SpanOf(library));
  machine_ = NewMachine(*executable_, device_->Places());
  main_ = BindParameters(*machine_, parameters_);
}

void Session::Place(const Case& given) {
  std::vector<ffi::Tensor> made;
  placed_.clear();
  for (const JsonValue& each : given.inputs) {
    made.push_back(MakeTensor(each, SpanOf(entry_.stored)));
    placed_.push_back(device_->ToDevice(made.back(), nullptr));
  }
  device_->ToHost({});
}

void Session::Start() {
  result_.reset();
  std::vector<ffi::AnyView> arguments(placed_.begin(), placed_.end());
  main_.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result_);
}

std::vector<ffi::Tensor> Session::Results() {
  auto returned = result_.cast<ffi::Array<ffi::Tensor>>();
  return device_->ToHost({returned.begin(), returned.end()});
}

void Session::Instrumented(const std::function<void(const KernelCall&)>& each) {
  auto instrument = [&](ffi::PackedArgs arguments, ffi::Any* result) {
    *result = 0;
    std::string name = arguments[1].cast<ffi::String>();
    auto found = entry_.kernels.find(name);
    if (found == entry_.kernels.end() || !arguments[2].cast<bool>()) return;
    ffi::Function kernel = arguments[0].cast<ffi::Function>();
    ffi::PackedArgs given = arguments.Slice(4);
    KernelCall call{found->first, found->second, {}, [&] {
                      ffi::Any nothing;
                      kernel.CallPacked(given, &nothing);
                    }};
    for (int i = 0; i < given.size(); ++i) {
      if (auto tensor = given[i].try_cast<ffi::Tensor>()) call.tensors.push_back(*tensor);
    }
    each(call);
    *result = kSkip;
  };
  ffi::Module machine = NewMachine(*executable_, device_->Places());
  ffi::Function main = BindParameters(machine, parameters_);
  FunctionOf(machine, "set_instrument")(ffi::Function::FromPacked(instrument));
  result_.reset();
  std::vector<ffi::AnyView> arguments(placed_.begin(), placed_.end());
  main.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result_);
}

}  // namespace tensorwright::pack
