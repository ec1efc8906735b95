// Timings of a module, as text and as JSON.
#pragma once

#include <string>
#include <vector>

#include "module.h"

namespace tensorwright {

// A report: printed line by line, if wanted, and kept as members of a JSON object.
class Report {
 public:
  explicit Report(bool prints) : prints_(prints) {}

  // `value` is JSON.
  void Add(const std::string& member, const std::string& value, const std::string& line);

  // The median and the 99th percentile of milliseconds; `what` begins the line.
  void AddTimes(const std::string& member, const std::string& what, const std::vector<double>& times);

  std::string Json() const { return "{" + members_ + "}"; }

 private:
  bool prints_;
  std::string members_;
};

// A number as JSON writes it.
std::string Number(double value);

// Number of runs to time (0: none); on a graphics processor also the run as one CUDA graph, and each kernel.
struct WantedTimes {
  int runs = 0;
  bool graph = false, kernels = false;
};

// Throws Error as the module's measurements do, but for a run that cannot be captured: that is reported.
void ReportTimes(Module* module, const std::vector<ffi::Tensor>& inputs, const WantedTimes& wanted, Report* report);

}  // namespace tensorwright
