#include "session.h"

#include "generator.h"
#include "library.h"
#include "simulated.h"

namespace tensorwright::pack {
namespace {

constexpr int kSkip = 1;  // what an instrument gives for a call that the virtual machine shall leave out

Span SpanOf(const std::string& bytes) { return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}; }

ffi::Function FunctionOf(const ffi::Module& module, const char* name) {
  auto found = module->GetFunction(name, true);
  if (!found) throw Error(std::string("the module's code has no function ") + name, "make the pack again");
  return *found;
}

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
  machine_ = NewMachine();
  main_ = BindParameters(*machine_);
}

ffi::Module Session::NewMachine() const {
  auto machine = FunctionOf(*executable_, "vm_load_executable")().cast<ffi::Module>();
  std::vector<int> places = device_->Places();
  std::vector<ffi::AnyView> arguments(places.begin(), places.end());
  ffi::Any result;
  FunctionOf(machine, "vm_initialization").CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
  return machine;
}

ffi::Function Session::BindParameters(const ffi::Module& machine) const {
  std::vector<ffi::AnyView> bound{"main", "bound_main", 1};
  bound.insert(bound.end(), parameters_.begin(), parameters_.end());
  ffi::Any result;
  FunctionOf(machine, "save_function").CallPacked(bound.data(), static_cast<int32_t>(bound.size()), &result);
  return FunctionOf(machine, "bound_main");
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
  ffi::Module machine = NewMachine();
  ffi::Function main = BindParameters(machine);
  FunctionOf(machine, "set_instrument")(ffi::Function::FromPacked(instrument));
  result_.reset();
  std::vector<ffi::AnyView> arguments(placed_.begin(), placed_.end());
  main.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result_);
}

}  // namespace tensorwright::pack
