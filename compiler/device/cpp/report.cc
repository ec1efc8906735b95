#include "report.h"

#include <algorithm>
#include <cstdio>

#include "checked_json.h"

namespace tensorwright {
namespace {

void ReportGraph(Module* module, const std::vector<ffi::Tensor>& inputs, int runs, Report* report) {
  try {
    DeviceTimes times = module->MeasureDevice(inputs, runs, true);
    report->AddTimes("graph_ms", "CUDA graph, on the device: ", times.device);
    report->AddTimes("graph_host_ms", "CUDA graph, until the results are there: ", times.host);
  } catch (const Error& error) {
    report->Add("graph_problem", JsonText(error.what()), std::string("no CUDA graph: ") + error.what());
  }
}

void ReportKernels(Module* module, const std::vector<ffi::Tensor>& inputs, int runs, Report* report) {
  std::string list, lines;
  for (const auto& [name, milliseconds] : module->MeasureKernels(inputs, runs)) {
    list += (list.empty() ? "" : ", ") + ("{\"name\": " + JsonText(name)) + ", \"ms\": " + Number(milliseconds) + "}";
    lines += (lines.empty() ? "" : "\n") + ("  " + Number(milliseconds)) + " ms  " + name;
  }
  report->Add("kernels", "[" + list + "]", lines);
}

}  // namespace

void Report::Add(const std::string& member, const std::string& value, const std::string& line) {
  if (prints_) std::printf("%s\n", Printable(line).c_str());
  members_ += (members_.empty() ? "" : ", ") + JsonText(member) + ": " + value;
}

void Report::AddTimes(const std::string& member, const std::string& what, const std::vector<double>& times) {
  char value[128], line[256];
  double p50 = Percentile(times, 0.5), p99 = Percentile(times, 0.99);
  std::snprintf(value, sizeof value, "{\"p50\": %.6f, \"p99\": %.6f, \"runs\": %zu}", p50, p99, times.size());
  std::snprintf(line, sizeof line, "%sp50 %.3f ms, p99 %.3f ms, %zu runs", what.c_str(), p50, p99, times.size());
  Add(member, value, line);
}

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

void ReportTimes(Module* module, const std::vector<ffi::Tensor>& inputs, const WantedTimes& wanted, Report* report) {
  bool device = !module->DeviceName().empty();
  if (wanted.runs > 0) {
    report->AddTimes("ms", "", module->Measure(inputs, wanted.runs, 1));
    if (device) {
      DeviceTimes times = module->MeasureDevice(inputs, wanted.runs, false);
      report->AddTimes("device_ms", "without copies, on the device: ", times.device);
      report->AddTimes("host_ms", "without copies, until the results are there: ", times.host);
    }
  }
  if (wanted.graph) ReportGraph(module, inputs, std::max(1, wanted.runs), report);
  if (wanted.kernels) ReportKernels(module, inputs, std::max(1, std::min(wanted.runs, 20)), report);
}

}  // namespace tensorwright
