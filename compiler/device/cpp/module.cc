#include "module.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "library.h"
#include "processor.h"

namespace tensorwright {
namespace {

constexpr int kPooledAllocator = 2;

// The module's code. Throws Error where this processor or this program's engine can not run it.
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
  if (artifact.engine != TENSORWRIGHT_ENGINE) {
    throw Error("the module was compiled with TVM " + artifact.engine + ", and this program has TVM " TENSORWRIGHT_ENGINE
                ": bundle it again, and use the programs of that bundle");
  }
  return artifact.library;
}

double FromHalf(uint16_t bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = exponent == 31 ? (fraction ? NAN : INFINITY) : exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return bits & 0x8000 ? -value : value;
}

template <typename T>
double As(const void* data, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * sizeof(T), sizeof(T));
  return static_cast<double>(value);
}

// An element as a number. 8-bit floats are compared by their bits.
double Element(const DLTensor& tensor, int64_t index) {
  const void* data = tensor.data;
  int bits = tensor.dtype.bits;
  switch (tensor.dtype.code) {
    case kDLFloat:
      return bits == 64 ? As<double>(data, index) : bits == 32 ? As<float>(data, index) : FromHalf(static_cast<const uint16_t*>(data)[index]);
    case kDLBfloat: {
      uint32_t wide = uint32_t{static_cast<const uint16_t*>(data)[index]} << 16;
      return As<float>(&wide, 0);
    }
    case kDLInt:
      return bits == 64 ? As<int64_t>(data, index) : bits == 32 ? As<int32_t>(data, index) : bits == 16 ? As<int16_t>(data, index) : As<int8_t>(data, index);
    default:
      return bits == 64 ? As<uint64_t>(data, index) : bits == 32 ? As<uint32_t>(data, index) : bits == 16 ? As<uint16_t>(data, index) : As<uint8_t>(data, index);
  }
}

double Milliseconds(std::chrono::steady_clock::duration span) { return std::chrono::duration<double, std::milli>(span).count(); }

std::string ShapeText(ffi::ShapeView shape) {
  std::string text;
  for (int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

}  // namespace

ffi::Function Global(const char* name) {
  auto found = ffi::Function::GetGlobal(name);
  if (!found) throw Error(std::string("the runtime has no function ") + name);
  return *found;
}

Module::Module(std::shared_ptr<Artifact> artifact)
    : artifact_(std::move(artifact)),
      executable_(LoadLibrary(CodeOf(*artifact_))),
      machine_((*executable_->GetFunction("vm_load_executable", true))().cast<ffi::Module>()) {
  if (artifact_->threads) setenv("TVM_NUM_THREADS", std::to_string(artifact_->threads).c_str(), 0);
  setenv("TVM_BIND_THREADS", "0", 0);
  (*machine_->GetFunction("vm_initialization", true))(static_cast<int>(kDLCPU), 0, kPooledAllocator);
  Expand();
  std::vector<ffi::AnyView> bound{"main", "bound_main", 1};
  std::vector<ffi::AnyView> checked(parameters_.begin(), parameters_.end());
  bound.insert(bound.end(), checked.begin(), checked.end());
  ffi::Any result;
  if (machine_->ImplementsFunction("tensorwright_check", true)) {
    ffi::Function check = *machine_->GetFunction("tensorwright_check", true);
    check.CallPacked(checked.data(), static_cast<int32_t>(checked.size()), &result);
  }
  ffi::Function save = *machine_->GetFunction("save_function", true);
  save.CallPacked(bound.data(), static_cast<int32_t>(bound.size()), &result);
  main_ = *machine_->GetFunction("bound_main", true);
}

// The parameters as `main` takes them.
void Module::Expand() {
  for (const NamedTensor& stored : ReadTensors(artifact_->parameters, artifact_->parameter_descriptions)) parameters_.push_back(stored.tensor);
  size_t compact = artifact_->compact_parameters;
  if (compact == 0) return;
  if (compact > parameters_.size()) throw Error("the module has fewer parameters than it says");
  std::vector<ffi::AnyView> small(parameters_.end() - static_cast<ptrdiff_t>(compact), parameters_.end());
  ffi::Any result;
  ffi::Function expand = *machine_->GetFunction("tensorwright_expand", true);
  expand.CallPacked(small.data(), static_cast<int32_t>(small.size()), &result);
  parameters_.resize(parameters_.size() - compact);
  for (const ffi::Tensor& each : result.cast<ffi::Array<ffi::Tensor>>()) parameters_.push_back(each);
}

void Module::CheckInputs(const std::vector<ffi::Tensor>& inputs) const {
  const auto& wanted = artifact_->inputs;
  if (inputs.size() != wanted.size()) {
    throw Error(std::to_string(inputs.size()) + " inputs were given and " + std::to_string(wanted.size()) + " are needed");
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    const DLTensor* tensor = inputs[i].GetDLTensorPtr();
    bool fits = tensor->ndim == static_cast<int>(wanted[i].shape.size()) && tensor->dtype.code == wanted[i].dtype.code &&
                tensor->dtype.bits == wanted[i].dtype.bits;
    for (int axis = 0; fits && axis < tensor->ndim; ++axis) fits = wanted[i].shape[axis] < 0 || wanted[i].shape[axis] == tensor->shape[axis];
    if (!fits) {
      throw Error("input '" + wanted[i].name + "' must be " + wanted[i].dtype_name + ShapeText(ffi::Shape(wanted[i].shape)) +
                  " (-1: any size), not " + std::string(ffi::DLDataTypeToString(tensor->dtype)) + ShapeText(inputs[i].shape()));
    }
  }
}

std::vector<ffi::Tensor> Module::Run(const std::vector<ffi::Tensor>& inputs) {
  CheckInputs(inputs);
  std::vector<ffi::AnyView> arguments(inputs.begin(), inputs.end());
  ffi::Any result;
  main_.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
  std::vector<ffi::Tensor> outputs;
  for (const ffi::Tensor& output : result.cast<ffi::Array<ffi::Tensor>>()) outputs.push_back(output);
  if (outputs.size() != artifact_->outputs.size()) throw Error("the module gave another number of outputs than it announces");
  return outputs;
}

double Module::Verify() {
  if (artifact_->reference_output_descriptions.empty()) throw Error("the module holds no reference to compare with");
  std::vector<ffi::Tensor> outputs = Run(ExampleInputs());
  std::map<std::string, ffi::Tensor> by_name;
  for (size_t i = 0; i < outputs.size(); ++i) by_name.emplace(artifact_->outputs[i].name, outputs[i]);
  double largest = 0;
  for (const NamedTensor& expected : ReadTensors(artifact_->reference_outputs, artifact_->reference_output_descriptions)) {
    auto found = by_name.find(expected.name);
    const DLTensor& right = *expected.tensor.GetDLTensorPtr();
    if (found == by_name.end() || !std::equal(found->second.shape().begin(), found->second.shape().end(), right.shape, right.shape + right.ndim)) {
      throw Error("output '" + expected.name + "' is missing or has another shape than the reference");
    }
    const DLTensor& left = *found->second.GetDLTensorPtr();
    int64_t wrong = 0, count = expected.tensor.numel();
    double difference = 0;
    for (int64_t i = 0; i < count; ++i) {
      double a = Element(left, i), b = Element(right, i);
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

std::vector<ffi::Tensor> Module::ExampleInputs() const {
  std::vector<ffi::Tensor> result;
  bool stored = !artifact_->reference_input_descriptions.empty() || artifact_->inputs.empty();
  std::map<std::string, ffi::Tensor> by_name;
  if (stored) {
    for (const NamedTensor& each : ReadTensors(artifact_->reference_inputs, artifact_->reference_input_descriptions)) by_name.emplace(each.name, each.tensor);
  }
  for (const Description& input : artifact_->inputs) {
    if (stored) {
      result.push_back(by_name.at(input.name));
      continue;
    }
    std::vector<int64_t> shape = input.shape;
    std::replace_if(shape.begin(), shape.end(), [](int64_t size) { return size < 0; }, int64_t{1});
    result.push_back(NewTensor(shape, input.dtype));
    std::memset(result.back().data_ptr(), 0, TensorBytes(*result.back().GetDLTensorPtr()));
  }
  return result;
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
