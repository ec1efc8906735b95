#include "module.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "elements.h"
#include "elf_check.h"
#include "library.h"
#include "processor.h"
#include "threads.h"
#include "virtual_machine.h"

namespace tensorwright {
namespace {

const std::string kGraphCalls = "vm.builtin.cuda_graph.";

// The module's code. Throws Error if this processor or this program's version of TVM cannot run it.
Span CodeOf(const Artifact& artifact) {
  if (artifact.architecture != Architecture()) {
    throw Error("the module is for " + artifact.architecture + " (target " + artifact.target_name + "), and this processor is " + Architecture());
  }
  std::string missing;
  for (const std::string& each : MissingFeatures(artifact.required_features)) missing += (missing.empty() ? "" : ", ") + each;
  if (!missing.empty()) {
    throw Error("the module needs processor features that this machine lacks: " + missing + " (it was compiled for target " + artifact.target_name +
                "): compile it for this machine's target, or for a more general one");
  }
  if (artifact.tvm_version != TENSORWRIGHT_TVM_VERSION) {
    throw Error("the module was compiled with TVM " + artifact.tvm_version + ", and this program has TVM " TENSORWRIGHT_TVM_VERSION
                ": bundle it again, and use the programs of that bundle");
  }
  CheckElf(artifact.library);
  return artifact.library;
}

// The compiler's description of a check inside a module: `tensorwright[...] `. Empty for other failures.
std::string CheckText(const std::string& failure) {
  const std::string mark = "tensorwright[";
  size_t start = failure.find(mark), end = start == std::string::npos ? start : failure.find("] ", start);
  return end == std::string::npos ? "" : failure.substr(start + mark.size(), end - start - mark.size());
}

double Milliseconds(std::chrono::steady_clock::duration span) { return std::chrono::duration<double, std::milli>(span).count(); }

}  // namespace

ffi::Function Global(const char* name) {
  auto found = ffi::Function::GetGlobal(name);
  if (!found) throw Error(std::string("the runtime has no function ") + name);
  return *found;
}

Module::Module(std::shared_ptr<Artifact> artifact) : artifact_(std::move(artifact)), checker_(*artifact_) {
  Span library = CodeOf(*artifact_);
  device_ = DeviceFor(*artifact_, artifact_->parameters.size);
  Explained([&] {
    std::vector<NamedTensor> stored = ReadTensors(artifact_->parameters, artifact_->parameter_descriptions, "the parameters of the module");
    size_t plain = stored.size() - std::min<size_t>(stored.size(), artifact_->compact_parameters);
    for (size_t i = 0; i < stored.size(); ++i) {
      parameters_.push_back(device_->ToDevice(i < plain && artifact_->OwnsBytes() ? Share(stored[i].tensor, artifact_) : stored[i].tensor, nullptr));
    }
  });
  reference_inputs_ = ReadTensors(artifact_->reference_inputs, artifact_->reference_input_descriptions, "the reference inputs of the module");
  reference_outputs_ = ReadTensors(artifact_->reference_outputs, artifact_->reference_output_descriptions, "the reference outputs of the module");
  if (!artifact_->initial_state_descriptions.empty()) {
    initial_states_ = ReadTensors(artifact_->initial_states, artifact_->initial_state_descriptions, "the states of the module");
  }
  if (!artifact_->asset_descriptions.empty()) ReadTensors(artifact_->assets, artifact_->asset_descriptions, "the assets of the module");
  threads_ = SetUpThreads(artifact_->threads);
  executable_ = LoadLibrary(library);
  machine_ = NewMachine(*executable_, device_->Places());
  OnThreads(threads_, [&] { Expand(); });
  CheckArity();
  if ((*machine_)->ImplementsFunction("tensorwright_check", true)) {
    std::vector<ffi::AnyView> checked(parameters_.begin(), parameters_.end());
    ffi::Any result;
    FunctionOf(*machine_, "tensorwright_check").CallPacked(checked.data(), static_cast<int32_t>(checked.size()), &result);
  }
  main_ = BindParameters(*machine_, parameters_);
}

Module::Module(const Module& other)
    : artifact_(other.artifact_),
      checker_(*artifact_),
      device_(other.device_),
      shared_(other.shared_),
      parameters_(other.parameters_),
      reference_inputs_(other.reference_inputs_),
      reference_outputs_(other.reference_outputs_),
      initial_states_(other.initial_states_),
      executable_(other.executable_),
      machine_(NewMachine(*executable_, device_->Places())),
      main_(BindParameters(*machine_, parameters_)),
      threads_(other.threads_),
      last_sizes_(other.last_sizes_) {}

std::unique_ptr<Module> Module::Shared() const { return std::unique_ptr<Module>(new Module(*this)); }

void Module::SetThreads(int threads) {
  CheckThreads(threads);
  threads_ = threads;
}

void Module::Failed(const std::string& failure) const {
  device_->Explain(failure);
  std::string check = CheckText(failure);
  if (check.empty()) throw Error("the module failed while running: " + failure);
  throw Error(check, "the sizes or values of the inputs do not fit this model: change them, or compile the model for these sizes");
}

void Module::CheckArity() const {
  int64_t actual = FunctionOf(*machine_, "get_function_arity")("main").cast<int64_t>();
  int64_t named = static_cast<int64_t>(artifact_->inputs.size() + parameters_.size());
  if (actual != named) {
    throw Error("the module's code takes " + std::to_string(actual) + " arguments; its manifest names " + std::to_string(named) +
                    " inputs and parameters",
                "compile the model again");
  }
}

// Expands the parameters to the arguments of `main`.
void Module::Expand() {
  size_t compact = artifact_->compact_parameters;
  if (compact == 0) return;
  std::vector<ffi::AnyView> small(parameters_.end() - static_cast<ptrdiff_t>(compact), parameters_.end());
  ffi::Any result;
  FunctionOf(*machine_, "tensorwright_expand").CallPacked(small.data(), static_cast<int32_t>(small.size()), &result);
  parameters_.resize(parameters_.size() - compact);
  auto expanded = result.cast<ffi::Array<ffi::Tensor>>();
  result = nullptr;
  for (const ffi::Tensor& each : expanded) parameters_.push_back(Share(each, nullptr));
  expanded = {};
  Global("vm.builtin.memory_manager.clear")();  // memory of parameters that were already shared
  std::vector<std::pair<const uint8_t*, size_t>> places;
  for (size_t i = parameters_.size() - compact; i < parameters_.size() && device_->Name().empty(); ++i) {
    const DLTensor* tensor = parameters_[i].GetDLTensorPtr();
    places.emplace_back(static_cast<const uint8_t*>(tensor->data) + tensor->byte_offset, TensorBytes(*tensor));
  }
  UseHugePages(std::move(places));
}

// A parameter over the bytes shared by all modules that have them, if kernels read this memory; `file`: may contain the
// parameter.
ffi::Tensor Module::Share(const ffi::Tensor& parameter, std::shared_ptr<Artifact> file) {
  if (!device_->Name().empty()) return parameter;
  SharedTensor shared = ShareTensor(parameter, file);
  if (shared.bytes) shared_.push_back(shared.bytes);
  if (file && !shared.tensor.same_as(parameter)) file->Forget(parameter.data_ptr(), shared.bytes->size);
  return shared.tensor;
}

std::vector<ffi::Tensor> Module::Run(const std::vector<ffi::Tensor>& inputs) {
  checker_.Check(inputs);
  return Explained([&] {
    std::vector<ffi::Tensor> outputs;
    OnThreads(threads_, [&] {
      RunOfSizes run(&last_sizes_, inputs);
      Place(inputs);
      outputs = device_->ToHost(Outputs(Call(placed_)));
      run.Ended();
    });
    return outputs;
  });
}

std::vector<ffi::Tensor> Module::Step(const std::vector<ffi::Tensor>& inputs) {
  checker_.Check(inputs);
  std::vector<ffi::Tensor> placed = inputs;
  std::vector<bool> held(inputs.size());
  for (const State& state : artifact_->states) held[state.input] = true;
  return Explained([&] {
    for (size_t i = 0; i < placed.size(); ++i) {
      if (!held[i]) placed[i] = device_->ToDevice(placed[i], nullptr);
    }
    std::vector<ffi::Tensor> outputs;
    OnThreads(threads_, [&] {
      RunOfSizes run(&last_sizes_, placed);
      outputs = Outputs(Call(placed));
      run.Ended();
    });
    return outputs;
  });
}

ffi::Tensor Module::Copy(const ffi::Tensor& tensor) {
  ffi::Tensor copy = NewTensor({tensor.shape().begin(), tensor.shape().end()}, tensor.dtype());
  size_t bytes = TensorBytes(*tensor.GetDLTensorPtr());
  if (bytes) std::memcpy(copy.data_ptr(), tensor.data_ptr(), bytes);
  return copy;
}

// Moves inputs to memory that kernels can read; states are copied, since a run writes to them.
void Module::Place(std::vector<ffi::Tensor> inputs) {
  for (const State& state : artifact_->states) {
    if (!state.grows) inputs[state.input] = Copy(inputs[state.input]);
  }
  std::vector<ffi::Tensor> placed;
  for (size_t i = 0; i < inputs.size(); ++i) placed.push_back(device_->ToDevice(inputs[i], placed_.empty() ? nullptr : &placed_[i]));
  placed_ = std::move(placed);
}

// Starts a run on the placed inputs; its results may not be computed yet.
ffi::Any Module::Call(const std::vector<ffi::Tensor>& placed) const {
  std::vector<ffi::AnyView> arguments(placed.begin(), placed.end());
  ffi::Any result;
  main_.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
  return result;
}

// Results of `main`, which must match the manifest.
std::vector<ffi::Tensor> Module::Outputs(const ffi::Any& result) const {
  auto returned = result.try_cast<ffi::Array<ffi::Tensor>>();
  if (!returned) throw Error("the module returned values that are not tensors");
  const auto& announced = artifact_->outputs;
  if (returned->size() != announced.size()) {
    throw Error("the module returned " + std::to_string(returned->size()) + " results; its manifest names " + std::to_string(announced.size()));
  }
  std::vector<ffi::Tensor> outputs(returned->begin(), returned->end());
  for (size_t i = 0; i < outputs.size(); ++i) {
    DLDataType dtype = outputs[i].dtype(), named = announced[i].dtype;
    if (dtype.code != named.code || dtype.bits != named.bits || dtype.lanes != named.lanes) {
      throw Error("output " + Quoted(announced[i].name) + " has element type " + std::string(ffi::DLDataTypeToString(dtype)) + ", not " +
                  std::string(ffi::DLDataTypeToString(named)) + " as announced");
    }
  }
  return outputs;
}

double Module::Verify() {
  if (reference_outputs_.empty()) throw Error("the module has no reference run to compare with");
  std::vector<ffi::Tensor> outputs = Run(ExampleInputs());
  std::map<std::string, ffi::Tensor> by_name;
  for (size_t i = 0; i < outputs.size(); ++i) by_name.emplace(artifact_->outputs[i].name, outputs[i]);
  double largest = 0;
  for (const NamedTensor& expected : reference_outputs_) {
    auto found = by_name.find(expected.name);
    const DLTensor& right = *expected.tensor.GetDLTensorPtr();
    if (found == by_name.end() || !std::equal(found->second.shape().begin(), found->second.shape().end(), right.shape, right.shape + right.ndim)) {
      throw Error("output '" + expected.name + "' is missing or has another shape than the reference");
    }
    const DLTensor& left = *found->second.GetDLTensorPtr();
    int64_t wrong = 0, count = expected.tensor.numel();
    double difference = 0;
    for (int64_t i = 0; i < count; ++i) {
      double a = ElementOf(left, i), b = ElementOf(right, i);
      if (a == b || (std::isnan(a) && std::isnan(b))) continue;
      double here = std::abs(a - b);
      if (!(here <= artifact_->absolute_tolerance + artifact_->relative_tolerance * std::abs(b))) ++wrong;
      difference = std::isnan(here) ? std::numeric_limits<double>::infinity() : std::max(difference, here);
    }
    if (wrong) {
      throw Error("output '" + expected.name + "' differs from the reference in " + std::to_string(wrong) + " of " + std::to_string(count) +
                  " elements, by up to " + std::to_string(difference));
    }
    largest = std::max(largest, difference);
  }
  return largest;
}

std::vector<double> Module::Measure(const std::vector<ffi::Tensor>& inputs, int runs, int warm_up) {
  for (int i = 0; i < warm_up; ++i) Run(inputs);
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) {
    auto start = std::chrono::steady_clock::now();
    Run(inputs);
    times.push_back(Milliseconds(std::chrono::steady_clock::now() - start));
  }
  return times;
}

DeviceTimes Module::MeasureDevice(const std::vector<ffi::Tensor>& inputs, int runs, bool graph) {
  std::vector<ffi::Tensor> expected = Run(inputs), found;
  ffi::Any result;
  auto run = [&] {
    result.reset();  // its memory is reused for the next result, since a graph must not allocate
    result = Call(placed_);
  };
  DeviceTimes times;
  Explained([&] {
    times = device_->Time(run, runs, graph);
    found = device_->ToHost(Outputs(result));
  });
  for (size_t i = 0; i < expected.size() && artifact_->states.empty(); ++i) {  // later runs of states have other results
    if (std::memcmp(expected[i].data_ptr(), found[i].data_ptr(), TensorBytes(*found[i].GetDLTensorPtr())) == 0) continue;
    throw Error("output " + Quoted(artifact_->outputs[i].name) + (graph ? " of the CUDA graph" : " of a later run") + " differs from that of the first run");
  }
  return times;
}

std::vector<std::pair<std::string, double>> Module::MeasureKernels(const std::vector<ffi::Tensor>& inputs, int runs) {
  std::unique_ptr<DeviceClock> clock = device_->Clock();
  if (!clock) throw Error("the module runs on the processor: `tensorwright profile` times its kernels");
  Run(inputs);
  ffi::Module machine = NewMachine(*executable_, device_->Places());
  ffi::Function main = BindParameters(machine, parameters_);
  struct Entry {
    std::string name;
    size_t begin, end;
  };
  std::vector<Entry> entries;
  std::vector<size_t> open;
  auto instrument = [&](ffi::PackedArgs arguments, ffi::Any* result) {
    *result = 0;  // continue
    std::string name = arguments[1].cast<ffi::String>();
    bool is_graph = name.compare(0, kGraphCalls.size(), kGraphCalls) == 0;
    if (name.compare(0, 3, "vm.") == 0 && !is_graph) return;  // memory and sizes
    if (arguments[2].cast<bool>()) {
      open.push_back(entries.size());
      entries.push_back({name, clock->Mark(), 0});
    } else {
      entries[open.back()].end = clock->Mark();
      open.pop_back();
    }
  };
  std::vector<ffi::AnyView> arguments(placed_.begin(), placed_.end());
  std::vector<std::vector<double>> times;
  for (int i = -1; i < runs; ++i) {
    entries.clear(), clock->Reset();
    ffi::Any result;
    main.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
    // Not in the first run: TVM captures its CUDA graphs then, and no event may be recorded during that.
    if (i < 0) FunctionOf(machine, "set_instrument")(ffi::Function::FromPacked(instrument));
    times.resize(entries.size());
    for (size_t j = 0; j < entries.size(); ++j) times[j].push_back(clock->Between(entries[j].begin, entries[j].end));
  }
  std::vector<std::pair<std::string, double>> kernels;
  for (size_t j = 0; j < entries.size(); ++j) kernels.emplace_back(entries[j].name, Percentile(times[j], 0.5));
  return kernels;
}

std::vector<ffi::Tensor> Module::ExampleInputs() const {
  std::vector<ffi::Tensor> result;
  bool stored = !reference_inputs_.empty() || !reference_outputs_.empty() || artifact_->inputs.empty();
  std::map<std::string, ffi::Tensor> by_name;
  for (const NamedTensor& each : reference_inputs_) by_name.emplace(each.name, each.tensor);
  Sizes sizes = artifact_->reference_sizes;
  for (const State& state : artifact_->states) {
    if (state.grows) sizes.emplace(artifact_->inputs[state.input].dimensions[*state.axis], 0);
  }
  sizes.emplace(artifact_->CountingDimension(), 0);
  for (const Description& input : artifact_->inputs) {
    auto found = by_name.find(input.name);
    for (size_t i = 0; found != by_name.end() && i < input.shape.size() && i < found->second.shape().size(); ++i) {
      if (!input.dimensions[i].empty()) sizes.emplace(input.dimensions[i], found->second.shape()[i]);
    }
  }
  for (size_t i = 0; i < artifact_->inputs.size(); ++i) {
    const Description& input = artifact_->inputs[i];
    if (stored) {
      auto found = by_name.find(input.name);
      if (found == by_name.end() && !artifact_->IsOfSession(i)) {
        throw Error("the stored example has no input " + Quoted(input.name), "compile the model again");
      }
      result.push_back(found == by_name.end() ? FirstValue(i, sizes) : found->second);
      continue;
    }
    std::vector<int64_t> shape = input.shape;
    std::replace_if(shape.begin(), shape.end(), [](int64_t size) { return size < 0; }, int64_t{1});
    result.push_back(NewZeros(shape, input.dtype));
  }
  return result;
}

ffi::Tensor Module::FirstValue(size_t input, const Sizes& sizes) const {
  const Description& description = artifact_->inputs[input];
  for (const NamedTensor& each : initial_states_) {
    if (each.name == description.name) return Copy(each.tensor);
  }
  std::vector<int64_t> shape = description.shape;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] >= 0) continue;
    try {
      auto found = sizes.find(description.dimensions[i]);
      shape[i] = found == sizes.end() ? Formula(description.dimensions[i]).Value(sizes) : found->second;
    } catch (const FormulaError&) {
      throw Error("the size " + Quoted(description.dimensions[i]) + " of input " + Quoted(description.name) + " is not known");
    }
  }
  return NewZeros(shape, description.dtype);
}

double Percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  double position = fraction * static_cast<double>(values.size() - 1);
  size_t below = static_cast<size_t>(position);
  size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (position - static_cast<double>(below)) * (values[above] - values[below]);
}

}  // namespace tensorwright
