#include "stages.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <optional>

#include "module.h"
#include "session.h"

namespace tensorwright::pack {
namespace {

constexpr double kTimedMilliseconds = 300, kKernelMilliseconds = 4;
constexpr int kMaxRuns = 50, kMinRuns = 5, kMaxRepeats = 50, kKernelRuns = 5;
constexpr int64_t kCallSamples = 48;
constexpr size_t kSourceCharacters = 12000;

std::string Number(double value) {
  char text[40];
  if (!std::isfinite(value)) return std::isnan(value) ? "\"nan\"" : "\"inf\"";
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

void Emit(const std::string& name, const std::string& stage, const std::string& members) {
  std::printf("{\"entry\": %s, \"stage\": %s%s%s}\n", JsonText(name).c_str(), JsonText(stage).c_str(), members.empty() ? "" : ", ", members.c_str());
  std::fflush(stdout);
}

// A JSON list, from a function that writes each item.
class List {
 public:
  void Add(const std::string& item) { text_ += (text_.empty() ? "" : ", ") + item; }
  std::string Text() const { return "[" + text_ + "]"; }

 private:
  std::string text_;
};

std::string ShapesOf(const std::vector<ffi::Tensor>& tensors) {
  List list;
  for (const ffi::Tensor& each : tensors) {
    list.Add(JsonText(std::string(ffi::DLDataTypeToString(each.dtype())) + ShapeText(each.shape().data(), each.shape().size())));
  }
  return list.Text();
}

Difference CompareWith(const Reference& expected, const ffi::Tensor& found, const Tolerance& tolerance) {
  if (!std::equal(found.shape().begin(), found.shape().end(), expected.shape.begin(), expected.shape.end())) {
    Difference made;
    made.words = "its shape is " + ShapeText(found.shape().data(), found.shape().size()) + ", not " + ShapeText(expected.shape.data(), expected.shape.size());
    return made;
  }
  return Compare(Summarize(*found.GetDLTensorPtr(), kSampleSeed, expected.samples), expected.summary, tolerance);
}

// The results of the last run against those of a case; empty where all are right.
std::string Check(Session* session, const Entry& entry, const Case& given, List* told) {
  std::vector<ffi::Tensor> results = session->Results();
  if (results.size() != given.outputs.size()) return std::to_string(results.size()) + " results, not " + std::to_string(given.outputs.size());
  std::string problem;
  for (size_t i = 0; i < results.size(); ++i) {
    Difference made = CompareWith(given.outputs[i], results[i], entry.tolerance);
    if (told) told->Add("{\"output\": " + JsonText(given.outputs[i].name) + ", \"largest\": " + Number(made.largest) + ", \"rms\": " + Number(made.rms) + "}");
    if (!made.right && problem.empty()) problem = "output " + Quoted(given.outputs[i].name) + ": " + made.words;
  }
  return problem;
}

bool CheckNumbers(Session* session, const Entry& entry) {
  List told;
  std::string problem;
  for (const Case& each : entry.cases) {
    session->Place(each);
    session->Start();
    std::string found = Check(session, entry, each, &told);
    if (problem.empty()) problem = found;
  }
  Emit(entry.name, "numbers", "\"right\": " + std::string(problem.empty() ? "true" : "false, \"problem\": " + JsonText(problem)) + ", \"outputs\": " + told.Text());
  return problem.empty();
}

std::string TimesText(const DeviceTimes& times) {
  return "\"ms\": " + Number(Percentile(times.device, 0.5)) + ", \"p10\": " + Number(Percentile(times.device, 0.1)) + ", \"p90\": " + Number(Percentile(times.device, 0.9)) +
         ", \"host_ms\": " + Number(Percentile(times.host, 0.5)) + ", \"runs\": " + std::to_string(times.device.size());
}

// Of runs that follow each other, each waited for; how many depends on how long one takes.
bool TimeRuns(Session* session, const Entry& entry, bool graph) {
  const char* stage = graph ? "graph" : "launches";
  const Case& given = entry.cases.front();
  try {
    auto run = [&] { session->Start(); };
    double first = Percentile(session->device().Time(run, kMinRuns, graph).host, 0.5);
    int runs = static_cast<int>(std::clamp(kTimedMilliseconds / std::max(first, 1e-3), double{kMinRuns}, double{kMaxRuns}));
    DeviceTimes times = entry.simulated.empty() ? session->device().Time(run, runs, graph) : session->device().Time(run, 1, graph);
    std::string problem = Check(session, entry, given, nullptr);
    Emit(entry.name, stage, TimesText(times) + ", \"right\": " + (problem.empty() ? "true" : "false, \"problem\": " + JsonText(problem)));
    return problem.empty();
  } catch (const std::exception& error) {
    Emit(entry.name, stage, "\"problem\": " + JsonText(error.what()));
    return !graph;  // what cannot be captured is slower, not wrong
  }
}

struct KernelTime {
  int calls = 0;
  double microseconds = 0, bytes = 0, operations = 0;
  std::string name, shapes;
};

// A call alone, again and again in one graph where it can be captured: without the processor's part, with warm caches.
double Microseconds(const Session& session, const Entry& entry, const KernelCall& call) {
  const Device& device = session.device();
  bool graph = entry.simulated.empty();
  double once = Percentile(device.Time(call.again, 2, false).device, 0.5);
  if (!graph) return 1e3 * once;
  int repeats = static_cast<int>(std::clamp(kKernelMilliseconds / std::max(once, 1e-3), 1.0, double{kMaxRepeats}));
  auto several = [&] {
    for (int i = 0; i < repeats; ++i) call.again();
  };
  return 1e3 * Percentile(device.Time(several, kKernelRuns, graph).device, 0.5) / repeats;
}

void TimeKernels(Session* session, const Entry& entry) {
  std::vector<KernelTime> kernels;
  std::map<std::string, size_t> known;
  session->Instrumented([&](const KernelCall& call) {
    std::string shapes = ShapesOf(call.tensors);
    auto [place, fresh] = known.emplace(call.name + shapes, kernels.size());
    if (fresh) {
      KernelTime made{0, Microseconds(*session, entry, call), 0, call.kernel.operations, call.name, shapes};
      std::map<const void*, double> bytes;  // a tensor that is given twice is read once
      for (const ffi::Tensor& each : call.tensors) bytes[each.data_ptr()] = static_cast<double>(TensorBytes(*each.GetDLTensorPtr()));
      for (const auto& [_, size] : bytes) made.bytes += size;
      kernels.push_back(std::move(made));
    } else {
      call.again();
    }
    ++kernels[place->second].calls;
  });
  List list;
  for (const KernelTime& each : kernels) {
    list.Add("{\"name\": " + JsonText(each.name) + ", \"calls\": " + std::to_string(each.calls) + ", \"us\": " + Number(each.microseconds) + ", \"bytes\": " + Number(each.bytes) +
             ", \"operations\": " + Number(each.operations) + ", \"tensors\": " + each.shapes + "}");
  }
  Emit(entry.name, "kernels", "\"kernels\": " + list.Text());
}

// The source of a kernel: the functions whose names are its own and "_kernel", "_kernel_1", ...
std::string SourceOf(const Entry& entry, const std::string& kernel) {
  std::string text = ReadCompressed(entry.folder + "/kernels.cu.gz"), found;
  const std::string begin = "extern \"C\" __global__", called = " " + kernel + "_kernel";
  for (size_t start = text.find(begin); start != std::string::npos;) {
    size_t next = text.find(begin, start + 1), body = text.find('{', start), name = text.find(called, start);
    if (name < body && body < next) found += text.substr(start, next - start);  // a definition
    start = next;
  }
  return found.substr(0, kSourceCharacters);
}

void TellKernel(const Entry& entry, const KernelCall& call, size_t number, const std::string& problem) {
  Emit(entry.name, "first wrong kernel",
       "\"kernel\": " + JsonText(call.name) + ", \"call\": " + std::to_string(number) + ", \"problem\": " + JsonText(problem) + ", \"tensors\": " + ShapesOf(call.tensors) +
           ", \"source\": " + JsonText(SourceOf(entry, call.name)));
}

struct Found {};  // ends a run whose first wrong kernel was named

std::vector<ffi::Tensor> ResultsOf(const Session& session, const KernelCall& call) {
  std::vector<ffi::Tensor> results;
  for (size_t place : call.kernel.results) {
    if (place >= call.tensors.size()) throw Error("kernel " + call.name + " was called with " + std::to_string(call.tensors.size()) + " tensors", "make the pack again");
    results.push_back(call.tensors[place]);
  }
  return session.device().ToHost(results);
}

}  // namespace

int RunEntry(const std::string& pack, const std::string& name) {
  Entry entry(pack, name);
  auto start = std::chrono::steady_clock::now();
  Session session(entry);
  Emit(name, "loaded", "\"device\": " + JsonText(session.device().Name()) + ", \"seconds\": " + Number(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()));
  if (!CheckNumbers(&session, entry)) return 1;
  session.Place(entry.cases.front());
  bool right = TimeRuns(&session, entry, false);
  right = TimeRuns(&session, entry, true) && right;
  TimeKernels(&session, entry);
  return right ? 0 : 1;
}

int TraceEntry(const std::string& pack, const std::string& name) {
  Entry entry(pack, name);
  Session session(entry);
  session.Place(entry.cases.front());
  size_t number = 0;
  auto each = [&](const KernelCall& call) {
    std::string problem;
    std::printf("%s%zu %s\n", kCallBegins, number, call.name.c_str());  // for the case that it ends this process
    std::fflush(stdout);
    try {
      call.again();
      std::vector<ffi::Tensor> results = ResultsOf(session, call);
      const Call* expected = number < entry.calls.size() && entry.calls[number].kernel == call.name ? &entry.calls[number] : nullptr;
      for (size_t i = 0; expected && i < results.size() && problem.empty(); ++i) problem = CompareWith(expected->results[i], results[i], entry.call_tolerance).words;
    } catch (const std::exception& error) {
      problem = error.what();
    }
    if (!problem.empty()) {
      TellKernel(entry, call, number, problem);
      throw Found();
    }
    ++number;
  };
  try {
    session.Instrumented(each);
    Emit(name, "no wrong kernel", "\"calls\": " + std::to_string(number) + ", \"compared\": " + std::to_string(entry.calls.size()));
  } catch (const Found&) {
  }
  return 0;
}

int RecordEntry(const std::string& pack, const std::string& name, const std::string& output) {
  Entry entry(pack, name);
  Session session(entry);
  session.Place(entry.cases.front());
  List calls;
  std::ofstream numbers(output + ".bin", std::ios::binary);
  session.Instrumented([&](const KernelCall& call) {
    call.again();
    List results;
    for (const ffi::Tensor& each : ResultsOf(session, call)) {
      Summary made = Summarize(*each.GetDLTensorPtr(), kSampleSeed, kCallSamples);
      std::vector<double> packed = made.Packed();
      numbers.write(reinterpret_cast<const char*>(packed.data()), static_cast<std::streamsize>(packed.size() * sizeof(double)));
      results.Add("{\"name\": " + JsonText(call.name) + ", \"shape\": " + ShapeText(each.shape().data(), each.shape().size()) + ", \"samples\": " + std::to_string(made.samples.size()) + "}");
    }
    calls.Add("{\"kernel\": " + JsonText(call.name) + ", \"results\": " + results.Text() + "}");
  });
  List told;
  std::string problem = Check(&session, entry, entry.cases.front(), &told);
  std::ofstream described(output + ".json");
  described << "{\"calls\": " << calls.Text() << ", \"outputs\": " << told.Text() << ", \"problem\": " << JsonText(problem) << "}\n";
  if (!described.flush() || !numbers.flush()) throw Error(output + " cannot be written");
  return 0;
}

int DescribeDevice(const std::string& pack) {
  std::string path = pack + "/pack.json";
  FileBytes file(path);
  JsonValue root = JsonValue::Parse(reinterpret_cast<const char*>(file.span().data), file.span().size, path);
  if (root["simulated"].Whole(0, 1)) {
    Emit("", "device", "\"name\": \"simulated\"");
    return 0;
  }
  Manifest manifest;
  manifest.target_name = root["target"].Text();
  manifest.device_kind = "cuda";
  manifest.compute_capability = static_cast<int>(root["compute_capability"].Whole(0, 1000));
  DeviceList list = DescribeDevices();
  std::unique_ptr<Device> device = DeviceFor(manifest, 0);
  Emit("", "device", "\"name\": " + JsonText(device->Name()) + ", \"devices\": " + list.json);
  return 0;
}

}  // namespace tensorwright::pack
