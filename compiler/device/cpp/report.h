// Timings of a module, as text and as JSON.
#pragma once

#include <string>
#include <vector>

#include "module.h"

namespace tensorwright {

// A report: printed line by line, if requested, and collected as members of a JSON object.
class Report {
 public:
  explicit Report(bool prints) : prints_(prints) {}

  // `value` is JSON.
  void Add(const std::string& member, const std::string& value, const std::string& line);

  // The median and the 99th percentile of milliseconds; the line starts with `what`.
  void AddTimes(const std::string& member, const std::string& what, const std::vector<double>& times);

  std::string Json() const { return "{" + members_ + "}"; }

 private:
  bool prints_;
  std::string members_;
};

// A number in JSON.
std::string Number(double value);

// Number of runs to time (0: none); on a GPU also whether to time the run as one CUDA graph, and each kernel.
struct WantedTimes {
  int runs = 0;
  bool graph = false, kernels = false;
};

// Throws the Errors of the module's measurements, except for a run that cannot be captured, which is reported.
void ReportTimes(Module* module, const std::vector<ffi::Tensor>& inputs, const WantedTimes& wanted, Report* report);

}  // namespace tensorwright
