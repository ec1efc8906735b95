#include "report.h"

#include <algorithm>
#include <cstdio>
#include <map>

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

// For each of these calls, the model's nodes that it computes: those of the same call in the code if a run makes
// exactly these calls of the kernel, otherwise the nodes of all its calls.
std::vector<std::vector<std::string>> NodesOf(const std::vector<std::pair<std::string, double>>& calls, const Manifest& manifest) {
  std::map<std::string, size_t> total, seen;
  for (const auto& call : calls) ++total[call.first];
  std::vector<std::vector<std::string>> result;
  for (const auto& call : calls) {
    size_t place = seen[call.first]++;
    result.emplace_back();
    auto known = manifest.kernel_nodes.find(call.first);
    if (known == manifest.kernel_nodes.end()) continue;
    for (size_t i = 0; i < known->second.size(); ++i) {
      if (total[call.first] == known->second.size() && i != place) continue;
      for (const std::string& node : known->second[i]) {
        if (std::find(result.back().begin(), result.back().end(), node) == result.back().end()) result.back().push_back(node);
      }
    }
  }
  return result;
}

void ReportKernels(Module* module, const std::vector<ffi::Tensor>& inputs, int runs, Report* report) {
  std::vector<std::pair<std::string, double>> calls = module->MeasureKernels(inputs, runs);
  std::vector<std::vector<std::string>> nodes = NodesOf(calls, module->artifact());
  std::string list, lines;
  for (size_t i = 0; i < calls.size(); ++i) {
    const auto& [name, milliseconds] = calls[i];
    std::string names, first = nodes[i].empty() ? "" : nodes[i][0] + "  ";
    if (nodes[i].size() > 1) first = nodes[i][0] + " (+" + std::to_string(nodes[i].size() - 1) + ")  ";
    for (const std::string& node : nodes[i]) names += (names.empty() ? "" : ", ") + JsonText(node);
    list += (list.empty() ? "" : ", ") + ("{\"name\": " + JsonText(name)) + ", \"nodes\": [" + names + "], \"ms\": " + Number(milliseconds) + "}";
    lines += (lines.empty() ? "" : "\n") + ("  " + Number(milliseconds)) + " ms  " + first + name;
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
