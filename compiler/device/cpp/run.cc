// Runs a module:  tensorwright-run MODULE.twm [--inputs FILE] [--outputs FILE] [--verify] [--runs N] [--graph] [--kernels]
//                                      [--json] [--trusted-key PATH]...
//
// FILE is in the safetensors format, tensors by the names of the module's inputs or outputs. Inputs are the stored example
// if not given. With --runs, the median and the 99th percentile of that many further runs are printed; on a graphics processor
// also those of runs without copies of inputs and outputs, by CUDA events, and with --graph of the run captured as one CUDA
// graph. With --kernels, what each kernel takes there. With --json all that is one JSON object, times in milliseconds.
// With --trusted-key (an Ed25519 public key in PEM form, or a folder of them; again for more) a module must be signed by one
// of these keys. A program that has its module linked in takes no MODULE.twm.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <optional>

#include "checked_json.h"
#include "linked.h"
#include "module.h"
#include "signature.h"

namespace tensorwright {
namespace {

struct Options {
  std::string module, inputs, outputs;
  bool verify = false, graph = false, kernels = false, json = false;
  int runs = 0;
  TrustedKeys trusted;
};

const char* const kUsage = "usage: tensorwright-run %s[--inputs FILE] [--outputs FILE] [--verify] [--runs N] [--graph] [--kernels] [--json] [--trusted-key PATH]...\n";

bool Parse(int count, char** arguments, Options* options) {
  for (int i = 1; i < count; ++i) {
    std::string argument = arguments[i];
    bool more = i + 1 < count;
    if (argument == "--verify") {
      options->verify = true;
    } else if (argument == "--graph") {
      options->graph = true;
    } else if (argument == "--kernels") {
      options->kernels = true;
    } else if (argument == "--json") {
      options->json = true;
    } else if (argument == "--inputs" && more) {
      options->inputs = arguments[++i];
    } else if (argument == "--outputs" && more) {
      options->outputs = arguments[++i];
    } else if (argument == "--trusted-key" && more) {
      options->trusted.Add(arguments[++i]);
    } else if (argument == "--runs" && more) {
      options->runs = std::atoi(arguments[++i]);
    } else if (options->module.empty() && argument[0] != '-' && !LinkedModule().data) {
      options->module = argument;
    } else {
      return false;
    }
  }
  return LinkedModule().data || !options->module.empty();
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file << content;
  if (!file.flush()) throw Error(path + " cannot be written");
}

// What is found, line by line, or as members of a JSON object.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}

  void Add(const std::string& member, const std::string& value, const std::string& line) {
    if (!json_) std::printf("%s\n", Printable(line).c_str());
    members_ += (members_.empty() ? "" : ", ") + JsonText(member) + ": " + value;
  }

  void AddTimes(const std::string& member, const std::string& what, const std::vector<double>& times) {
    char value[128], line[256];
    double p50 = Percentile(times, 0.5), p99 = Percentile(times, 0.99);
    std::snprintf(value, sizeof value, "{\"p50\": %.6f, \"p99\": %.6f, \"runs\": %zu}", p50, p99, times.size());
    std::snprintf(line, sizeof line, "%sp50 %.3f ms, p99 %.3f ms, %zu runs", what.c_str(), p50, p99, times.size());
    Add(member, value, line);
  }

  void Finish() const {
    if (json_) std::printf("{%s}\n", members_.c_str());
  }

 private:
  bool json_;
  std::string members_;
};

void Describe(const std::vector<Description>& descriptions, const std::vector<ffi::Tensor>& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::string shape = ShapeText(tensors[i].shape().data(), tensors[i].shape().size());
    std::printf("%s: %s%s\n", Printable(descriptions[i].name).c_str(), descriptions[i].dtype_name.c_str(), shape.c_str());
  }
}

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

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

void Measure(const Options& options, Module* module, const std::vector<ffi::Tensor>& inputs, Report* report) {
  bool device = !module->DeviceName().empty();
  if (options.runs > 0) {
    report->AddTimes("ms", "", module->Measure(inputs, options.runs, 1));
    if (device) {
      DeviceTimes times = module->MeasureDevice(inputs, options.runs, false);
      report->AddTimes("device_ms", "without copies, on the device: ", times.device);
      report->AddTimes("host_ms", "without copies, until the results are there: ", times.host);
    }
  }
  if (options.graph) ReportGraph(module, inputs, std::max(1, options.runs), report);
  if (options.kernels) ReportKernels(module, inputs, std::max(1, std::min(options.runs, 20)), report);
}

int Main(int count, char** arguments) {
  Options options;
  if (!Parse(count, arguments, &options)) {
    std::fprintf(stderr, kUsage, LinkedModule().data ? "" : "MODULE.twm ");
    return 2;
  }
  bool linked = LinkedModule().data != nullptr;
  auto artifact = linked ? Artifact::FromMemory(LinkedModule(), "the linked module", &options.trusted) : Artifact::Open(options.module, &options.trusted);
  Module module(artifact);
  if ((options.graph || options.kernels) && module.DeviceName().empty()) {
    throw Error("--graph and --kernels are for modules of graphics processors, and this one runs on the processor");
  }
  std::optional<FileBytes> file;  // of the inputs, which lie in it
  if (!options.inputs.empty()) file.emplace(options.inputs);
  std::vector<ffi::Tensor> inputs = file ? ReadInputs(file->span(), artifact->inputs, options.inputs) : module.ExampleInputs();
  Report report(options.json);
  if (!module.DeviceName().empty()) report.Add("device", JsonText(module.DeviceName()), "device: " + module.DeviceName());
  if (options.verify) {
    double difference = module.Verify();
    report.Add("difference", Number(difference), "verified: the largest difference from the reference is " + Number(difference));
  }
  std::vector<ffi::Tensor> outputs = module.Run(inputs);
  if (!options.outputs.empty()) WriteFile(options.outputs, WriteTensors(artifact->outputs, outputs));
  if (!options.json) Describe(artifact->outputs, outputs);
  Measure(options, &module, inputs, &report);
  report.Finish();
  return 0;
}

}  // namespace
}  // namespace tensorwright

int main(int count, char** arguments) {
  try {
    return tensorwright::Main(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", tensorwright::Printable(error.what()).c_str());
    return 1;
  }
}
