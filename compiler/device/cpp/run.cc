// Runs a module:  tensorwright-run MODULE.twm [FILE]... [--text TEXT]... [--picture FILE] [--inputs FILE] [--outputs FILE] [--verify]
//                                      [--runs N] [--graph] [--kernels]
//                                      [--session] [--capacity N] [--load-states FILE] [--save-states FILE]
//                                      [--json] [--trusted-key PATH]...
//
// A module with processing accepts images (PNG, JPEG, GIF, BMP), recordings (WAV) or texts (--text), prints its
// findings, and writes images with boxes or masks: FILE-boxes.png in the current folder, or the file named by
// --picture. FILE of an option is in the safetensors format, with tensors by the names of the module's inputs or
// outputs. Inputs default to the stored example. With --runs, the median and the 99th percentile of that many
// additional runs are printed; on a GPU also those of runs without copies of inputs and outputs, by CUDA events, and
// with --graph of the run captured as one CUDA graph. With --kernels, the time of each kernel there. With --json all of
// that is one JSON object, with times in milliseconds. With --session the run is one step of a session: its inputs and
// outputs are those of the module without its states, which are loaded from --load-states and stored in --save-states,
// and have --capacity rows if that size is dynamic. With --trusted-key (an Ed25519 public key in PEM form, or a folder
// of them; can be repeated) a module must be signed by one of these keys. A program with a linked module does not take
// MODULE.twm.
#include <algorithm>
#include <cstdio>
#include <optional>

#include "audio.h"
#include "checked_json.h"
#include "image.h"
#include "linked.h"
#include "module.h"
#include "prediction.h"
#include "report.h"
#include "run.h"
#include "session.h"
#include "signature.h"
#include "speech.h"
#include "text/embedder.h"
#include "whole_number.h"

namespace tensorwright {
namespace {

struct Options {
  std::string module, inputs, outputs, picture, load_states, save_states;
  std::vector<std::string> files, texts;  // files are images or recordings
  bool verify = false, graph = false, kernels = false, json = false, session = false;
  int runs = 0;
  int64_t capacity = 0;
  TrustedKeys trusted;
};

constexpr int kMaxRuns = 1'000'000;
constexpr size_t kShownNumbers = 6;  // of a vector
const char* const kUsage = "usage: tensorwright-run %s[FILE]... [--text TEXT]... [--picture FILE] [--inputs FILE] [--outputs FILE] [--verify] [--runs N] [--graph] [--kernels] [--session] [--capacity N] "
    "[--load-states FILE] [--save-states FILE] [--json] [--trusted-key PATH]...\n";

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
    } else if (argument == "--session") {
      options->session = true;
    } else if (argument == "--capacity" && more) {
      options->capacity = static_cast<int64_t>(WholeNumber(arguments[++i], std::numeric_limits<int64_t>::max()));
      if (options->capacity == 0) throw Error("--capacity takes a number of rows, not " + Quoted(arguments[i]));
    } else if (argument == "--load-states" && more) {
      options->load_states = arguments[++i];
    } else if (argument == "--save-states" && more) {
      options->save_states = arguments[++i];
    } else if (argument == "--inputs" && more) {
      options->inputs = arguments[++i];
    } else if (argument == "--outputs" && more) {
      options->outputs = arguments[++i];
    } else if (argument == "--picture" && more) {
      options->picture = arguments[++i];
    } else if (argument == "--text" && more) {
      options->texts.push_back(arguments[++i]);
    } else if (argument == "--trusted-key" && more) {
      options->trusted.Add(arguments[++i]);
    } else if (argument == "--runs" && more) {
      options->runs = static_cast<int>(WholeNumber(arguments[++i], kMaxRuns));
      if (options->runs == 0) throw Error("--runs takes a number from 1 to " + std::to_string(kMaxRuns) + ", not " + Quoted(arguments[i]));
    } else if (options->module.empty() && argument[0] != '-' && !LinkedModule().data) {
      options->module = argument;
    } else if (argument[0] != '-') {
      options->files.push_back(argument);
    } else {
      return false;
    }
  }
  if (options->files.size() != 1 && !(options->picture.empty() && (options->files.empty() || options->outputs.empty()))) {
    throw Error("--picture and --outputs name one file: of one picture", "run the pictures one at a time");
  }
  if (!options->files.empty() && (options->session || !options->inputs.empty())) throw Error("a picture or recording is the module's input: leave out --inputs and --session");
  if (!options->texts.empty() && (options->session || !options->files.empty() || !options->inputs.empty() || !options->outputs.empty())) {
    throw Error("--text gives all inputs: leave out files, --inputs, --outputs and --session");
  }
  return LinkedModule().data || !options->module.empty();
}

void Describe(const std::vector<Description>& descriptions, const std::vector<ffi::Tensor>& tensors) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::string shape = ShapeText(tensors[i].shape().data(), tensors[i].shape().size());
    std::printf("%s: %s%s\n", Printable(descriptions[i].name).c_str(), descriptions[i].dtype_name.c_str(), shape.c_str());
  }
}

std::vector<Description> Chosen(const std::vector<Description>& all, const std::vector<size_t>& places) {
  std::vector<Description> chosen;
  for (size_t place : places) chosen.push_back(all[place]);
  return chosen;
}

// Runs one step of a session; inputs default to the stored example's.
void RunStep(Module* module, const Options& options, Report* report) {
  const Artifact& artifact = module->artifact();
  Session session(module, options.capacity);
  if (!options.load_states.empty()) session.Load(FileBytes(options.load_states).span(), options.load_states);
  std::vector<Description> taken = Chosen(artifact.inputs, session.inputs()), given = Chosen(artifact.outputs, session.outputs());
  std::optional<FileBytes> file;
  std::vector<ffi::Tensor> inputs;
  if (!options.inputs.empty()) {
    file.emplace(options.inputs);
    inputs = ReadInputs(file->span(), taken, options.inputs);
  } else {
    std::vector<ffi::Tensor> all = module->ExampleInputs();
    for (size_t place : session.inputs()) inputs.push_back(all[place]);
  }
  std::vector<ffi::Tensor> outputs = session.Run(inputs);
  if (!options.outputs.empty()) WriteFile(options.outputs, WriteTensors(given, outputs));
  if (!options.save_states.empty()) WriteFile(options.save_states, session.Save());
  if (!options.json) Describe(given, outputs);
  report->Add("rows", std::to_string(session.length()), "rows in use: " + std::to_string(session.length()));
}

// Runs the module on each recording, and prints the segments with speech.
void Listen(Module* module, const Processing& processing, const Options& options, Report* report) {
  if (!options.picture.empty() || !options.outputs.empty()) throw Error("a recording has neither a picture nor outputs of one run: leave out --picture and --outputs");
  std::string list;
  for (const std::string& path : options.files) {
    SpeechParts found = FindSpeech(module, processing, ReadWave(FileBytes(path).span(), path, processing.rate));
    list += (list.empty() ? "" : ", ") + ("{\"input\": " + JsonText(path)) + ", " + found.json + "}";
    if (options.json) continue;
    if (options.files.size() > 1) std::printf("%s\n", Printable(path).c_str());
    std::printf("%s\n", found.text.c_str());
  }
  if (options.json) report->Add("predictions", "[" + list + "]", "");
}

// Runs an embedder on each text, and prints the vectors; in JSON all of their numbers.
void ShowVectors(Module* module, const Options& options, Report* report) {
  std::vector<std::vector<float>> vectors = Embed(module, options.texts);
  std::string list;
  for (size_t i = 0; i < vectors.size(); ++i) {
    std::string numbers, shown;
    for (size_t place = 0; place < vectors[i].size(); ++place) {
      numbers += (place ? ", " : "") + Number(vectors[i][place]);
      char text[16];
      std::snprintf(text, sizeof text, "%.4f, ", vectors[i][place]);
      if (place < kShownNumbers) shown += text;
    }
    list += (i ? ", " : "") + ("{\"input\": " + JsonText(options.texts[i])) + ", \"vector\": [" + numbers + "]}";
    if (options.json) continue;
    if (vectors.size() > 1) std::printf("%s\n", Printable(options.texts[i]).c_str());
    std::printf("[%s...] (%zu numbers; --json prints all)\n", shown.c_str(), vectors[i].size());
  }
  if (options.json) report->Add("predictions", "[" + list + "]", "");
}

// Runs the module on each image or recording, and prints its findings. Returns the inputs of the last run.
std::vector<ffi::Tensor> Predict(Module* module, const Options& options, Report* report) {
  const Artifact& artifact = module->artifact();
  Processing processing = Processing::Of(artifact);
  if (processing.task == "speech") {
    Listen(module, processing, options, report);
    return module->ExampleInputs();
  }
  std::vector<ffi::Tensor> inputs;
  std::string list;
  for (const std::string& path : options.files) {
    inputs = {ReadImage(FileBytes(path).span(), path)};
    std::vector<ffi::Tensor> outputs = module->Run(inputs);
    if (!options.outputs.empty()) WriteFile(options.outputs, WriteTensors(artifact.outputs, outputs));
    Prediction found = ReadPrediction(processing, artifact, outputs, inputs[0]);
    std::string picture = options.picture.empty() ? PicturePath(processing, path) : options.picture;
    if (found.picture) WritePng(picture, *found.picture);
    list += (list.empty() ? "" : ", ") + ("{\"input\": " + JsonText(path)) + ", " + found.json + (found.picture ? ", \"picture\": " + JsonText(picture) : "") + "}";
    if (options.json) continue;
    if (options.files.size() > 1) std::printf("%s\n", Printable(path).c_str());
    std::printf("%s\n%s", Printable(found.text).c_str(), found.picture ? Printable("wrote " + picture + "\n").c_str() : "");
  }
  if (options.json) report->Add("predictions", "[" + list + "]", "");
  return inputs;
}

}  // namespace

int RunnerMain(int count, char** arguments) {
  Options options;
  if (!Parse(count, arguments, &options)) {
    std::fprintf(stderr, kUsage, LinkedModule().data ? "" : "MODULE.twm ");
    return 2;
  }
  bool linked = LinkedModule().data != nullptr;
  auto artifact = linked ? Artifact::FromMemory(LinkedModule(), "the linked module", &options.trusted) : Artifact::Open(options.module, &options.trusted);
  Module module(artifact);
  if ((options.graph || options.kernels) && module.DeviceName().empty()) {
    throw Error("--graph and --kernels are for modules of GPUs, and this one runs on the processor");
  }
  std::optional<FileBytes> file;  // holds the memory of the inputs
  if (!options.inputs.empty() && !options.session) file.emplace(options.inputs);
  std::vector<ffi::Tensor> inputs = file ? ReadInputs(file->span(), artifact->inputs, options.inputs) : module.ExampleInputs();
  Report report(!options.json);
  if (!module.DeviceName().empty()) report.Add("device", JsonText(module.DeviceName()), "device: " + module.DeviceName());
  if (options.verify) {
    double difference = module.Verify();
    report.Add("difference", Number(difference), "verified: the largest difference from the reference is " + Number(difference));
  }
  if (options.session) {
    RunStep(&module, options, &report);
    if (options.json) std::printf("%s\n", report.Json().c_str());
    return 0;
  }
  if (!options.files.empty()) {
    inputs = Predict(&module, options, &report);
  } else if (!options.texts.empty()) {
    ShowVectors(&module, options, &report);
  } else {
    std::vector<ffi::Tensor> outputs = module.Run(inputs);
    if (!options.outputs.empty()) WriteFile(options.outputs, WriteTensors(artifact->outputs, outputs));
    if (!options.json) Describe(artifact->outputs, outputs);
  }
  ReportTimes(&module, inputs, {options.runs, options.graph, options.kernels}, &report);
  if (options.json) std::printf("%s\n", report.Json().c_str());
  return 0;
}

int Guarded(const std::function<int()>& program) {
  try {
    return program();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", Printable(error.what()).c_str());
    return 1;
  }
}

}  // namespace tensorwright
