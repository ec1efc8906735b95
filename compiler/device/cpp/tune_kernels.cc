#include "tune_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>

#include "elements.h"
#include "library.h"
#include "module.h"

namespace tensorwright {
namespace {

constexpr int kSamples = 12, kRounds = 7, kSamplesOfARound = 3;
constexpr double kMillisecondsOfASample = 0.3;  // events have a resolution of half a microsecond
constexpr int kMaxCalls = 50;                  // in one graph
constexpr double kMaxMilliseconds = 1000;      // of sampling

// Normally distributed floats; otherwise -1, 0 and 1 as far as the type has them, which are valid masks and indices.
ffi::Tensor RandomTensor(const Description& description, std::mt19937* generator) {
  ffi::Tensor tensor = NewTensor(description.shape, description.dtype);
  std::normal_distribution<float> normal;
  bool is_float = description.dtype.code == kDLFloat || description.dtype.code == kDLBfloat;
  int least = description.dtype.code == kDLInt && description.dtype.bits == 8 ? -1 : 0;
  for (int64_t i = 0, count = tensor.numel(); i < count; ++i) {
    double value = is_float ? normal(*generator) : static_cast<int>((*generator)() % static_cast<unsigned>(2 - least)) + least;
    StoreElement(tensor, i, value);
  }
  return tensor;
}

// Initial contents of a result: a value that no correct result contains.
ffi::Tensor PoisonedTensor(const Description& description) {
  ffi::Tensor tensor = NewTensor(description.shape, description.dtype);
  bool is_float = description.dtype.code == kDLFloat || description.dtype.code == kDLBfloat;
  for (int64_t i = 0, count = tensor.numel(); i < count; ++i) StoreElement(tensor, i, is_float ? NAN : description.dtype.code == kDLBool ? 1 : 77);
  return tensor;
}

// The difference between two results; empty if they agree.
std::string Difference(const ffi::Tensor& found, const ffi::Tensor& expected, double tolerance) {
  const DLTensor &a = *found.GetDLTensorPtr(), &b = *expected.GetDLTensorPtr();
  double largest = 0, worst = 0;
  int64_t count = expected.numel(), wrong = 0, strange = 0;
  for (int64_t i = 0; i < count; ++i) {
    double x = ElementOf(a, i), y = ElementOf(b, i);
    if (std::isfinite(x) != std::isfinite(y)) ++strange;
    if (!std::isfinite(x) || !std::isfinite(y)) continue;
    wrong += x != y;
    largest = std::max(largest, std::abs(y)), worst = std::max(worst, std::abs(x - y));
  }
  if (strange) return std::to_string(strange) + " of " + std::to_string(count) + " values are not finite where the default's are, or the other way round";
  if (tolerance == 0) return wrong ? std::to_string(wrong) + " of " + std::to_string(count) + " values differ from the default's" : "";
  if (worst <= tolerance * largest) return "";
  char text[96];
  std::snprintf(text, sizeof text, "off by %.3g where the default's largest value is %.3g", worst, largest);
  return text;
}

}  // namespace

TuneKernels::TuneKernels(const TunePlan& plan) : plan_(plan), device_(DeviceFor(plan.target, 0)) {}

void TuneKernels::Open(size_t task) {
  index_ = task, task_ = &plan_.tasks[task];
  arguments_.clear(), poison_.clear();
  FileBytes file(plan_.folder + "/" + task_->library);
  library_ = std::make_unique<ffi::Module>(LoadLibrary(file.span()));
  std::mt19937 generator(0);
  try {
    for (const TuneArgument& each : task_->arguments) {
      poison_.push_back(each.is_output ? PoisonedTensor(each.description) : RandomTensor(each.description, &generator));
      arguments_.push_back(device_->ToDevice(poison_.back(), nullptr));
    }
    Poison();
    Run(0);
    expected_ = Results();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    device_->Explain(error.what());
    throw;
  }
}

void TuneKernels::Poison() {
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (task_->arguments[i].is_output) arguments_[i] = device_->ToDevice(poison_[i], &arguments_[i]);
  }
}

void TuneKernels::Run(size_t candidate) {
  auto function = (*library_)->GetFunction(task_->symbols[candidate], true);
  if (!function) throw Error("the library of the pack has no function " + task_->symbols[candidate], "make the pack again");
  std::vector<ffi::AnyView> arguments(arguments_.begin(), arguments_.end());
  ffi::Any result;
  (*function).CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
}

std::vector<ffi::Tensor> TuneKernels::Results() const {
  std::vector<ffi::Tensor> results;
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (task_->arguments[i].is_compared) results.push_back(arguments_[i]);
  }
  return device_->ToHost(results);
}

TuneResult TuneKernels::Made(size_t candidate) const {
  TuneResult result;
  result.task = index_, result.candidate = candidate, result.status = "ok", result.unix_time = std::time(nullptr);
  return result;
}

// An estimate of the milliseconds per call.
double TuneKernels::Once(size_t candidate) { return Percentile(device_->Time([&] { Run(candidate); }, 3, true).device, 0.5); }

// Seconds per call: one CUDA graph has enough calls that launching it does not matter. Slow candidates are sampled less
// often.
std::vector<double> TuneKernels::Time(size_t candidate, double once, int samples) {
  samples = std::max(1, std::min(samples, static_cast<int>(kMaxMilliseconds / std::max(once, 1e-3))));
  int calls = std::max(1, std::min(kMaxCalls, static_cast<int>(kMillisecondsOfASample / std::max(once, 1e-3))));
  auto run = [&] {
    for (int i = 0; i < calls; ++i) Run(candidate);
  };
  std::vector<double> seconds;
  for (double each : device_->Time(run, samples, true).device) seconds.push_back(std::max(each, 1e-6) / 1e3 / calls);
  return seconds;
}

TuneResult TuneKernels::Measure(size_t candidate) {
  TuneResult result = Made(candidate);
  try {
    Poison();
    Run(candidate);
    std::vector<ffi::Tensor> found = Results();
    size_t next = 0;
    for (const TuneArgument& each : task_->arguments) {
      if (!each.is_compared || !result.note.empty()) continue;
      result.note = Difference(found[next], expected_[next], each.tolerance), ++next;
    }
    if (!result.note.empty()) {
      result.status = "wrong-numbers";
      return result;
    }
    result.seconds = Time(candidate, Once(candidate), kSamples);
  } catch (const std::exception& error) {
    result.status = "run-error", result.note = error.what(), result.seconds.clear();
  }
  return result;
}

std::vector<TuneResult> TuneKernels::Compare(const std::vector<size_t>& candidates) {
  std::vector<TuneResult> results;
  std::vector<double> once;
  double all = 0;
  for (size_t each : candidates) {
    results.push_back(Made(each)), results.back().compared = true;
    once.push_back(Once(each)), all += once.back();
  }
  int rounds = std::max(3, std::min(kRounds, static_cast<int>(kMaxMilliseconds / all)));
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < results.size(); ++i) {
      for (double seconds : Time(results[i].candidate, once[i], kSamplesOfARound)) results[i].seconds.push_back(seconds);
    }
  }
  return results;
}

}  // namespace tensorwright
