// Runs a pack: each entry in a process of its own, the most important first, within a time budget.
//
//   pack-driver PACK [--budget SECONDS] [--only TEXT] [--python PROGRAM]
//
// Results go to $OUT/results.json, or PACK/results.json: a line of JSON for each thing that is known. A run goes on where
// the one before was cut. Exit status: 0 all right, 1 something is wrong, 2 it cannot run here.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "child.h"
#include "file.h"
#include "results.h"
#include "stages.h"

namespace tensorwright::pack {
namespace {

constexpr double kEntrySeconds = 60, kTraceSeconds = 30, kDeviceSeconds = 60, kShareOfPeers = 0.7, kMinSeconds = 3;
const char* const kPeers = "benchmarks.gpu_pack.peers";
const char* const kPeersFile = "/python/benchmarks/gpu_pack/peers.py";

struct Options {
  std::string pack, only, python;
  double budget = 450;
};

struct Listed {
  std::string name;
  bool is_rest;  // after the peers
};

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string Seconds(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f", value);
  return text;
}

std::string EndLine(const std::string& entry, const std::string& status, double seconds, const std::string& problem) {
  return "{\"entry\": " + JsonText(entry) + ", \"stage\": \"end\", \"status\": " + JsonText(status) + ", \"seconds\": " + Seconds(seconds) +
         (problem.empty() ? "" : ", \"problem\": " + JsonText(problem)) + "}";
}

class Run {
 public:
  Run(const Options& options, const JsonValue& pack, const std::string& path)
      : options_(options), started_(Now()), id_(pack["id"].Text()), results_(path, id_) {
    for (const JsonValue& each : pack["entries"].Items()) {
      std::string name = each["name"].Text();
      if (options.only.empty() || name.find(options.only) != std::string::npos) listed_.push_back({name, each["rest"].Whole(0, 1) != 0});
    }
  }

  int All() {
    Device();
    bool has_peers = !options_.python.empty() && access((options_.pack + kPeersFile).c_str(), R_OK) == 0;
    for (bool rest : {false, true}) {
      for (const Listed& each : listed_) {
        if (each.is_rest == rest) Entry(each.name);
      }
      if (!rest && has_peers) Peers();
    }
    std::printf("%d right, %d wrong, %d known from before, %d skipped; %s s; results in %s\n", right_, wrong_, known_, skipped_, Seconds(Now() - started_).c_str(), results_.path().c_str());
    if (skipped_) std::printf("skipped for lack of time; run again to go on\n");
    return results_.HasWrong() ? 1 : 0;
  }

 private:
  double Left() const { return options_.budget - (Now() - started_); }

  std::vector<std::string> Self(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"/proc/self/exe", options_.pack});
    return arguments;
  }

  void Device() {
    std::vector<std::string> lines;
    Ended ended = RunChild(Self({"--device"}), kDeviceSeconds, [&](const std::string& line) { lines.push_back(line); });
    if (ended.status != 0 || ended.late) throw Error(ended.errors.empty() ? "the device could not be described: " + ended.Words() : ended.errors);
    std::string facts;
    const char* query = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,clocks.max.mem,power.limit,persistence_mode,mig.mode.current";
    RunChild({"nvidia-smi", std::string("--query-gpu=") + query, "--format=csv"}, 20, [&](const std::string& line) { facts += line + "\n"; });
    results_.Append("{\"stage\": \"run\", \"pack\": " + JsonText(id_) + ", \"time\": " + std::to_string(std::time(nullptr)) + ", \"budget\": " + Seconds(options_.budget) +
                    ", \"nvidia_smi\": " + JsonText(facts) + "}");
    for (const std::string& line : lines) Keep(line);
  }

  // A line of a child, where it is one of results.
  bool Keep(const std::string& line) {
    if (line.rfind("{\"entry\": ", 0) != 0) return false;
    results_.Append(line);
    return true;
  }

  void Entry(const std::string& name) {
    if (results_.Has(name)) {
      ++known_;
      return;
    }
    if (Left() < kMinSeconds) {
      if (!skipped_++) std::printf("%s and what follows: no time left\n", name.c_str());
      return;
    }
    double start = Now();
    Ended ended = RunChild(Self({"--entry", name}), std::min(kEntrySeconds, Left()), [&](const std::string& line) { Keep(line); });
    std::string status = "right", problem;
    if (ended.late && Left() < kMinSeconds) {  // the run's time was over, which is not the entry's fault
      ++skipped_;
      return;
    }
    if (ended.late || ended.status != 0) {
      status = ended.late ? "late" : ended.status == 1 && ended.errors.empty() ? "wrong" : "failed";
      problem = status == "wrong" ? Trace(name, "numbers are wrong") : Trace(name, ended.Words());
    }
    results_.Append(EndLine(name, status, Now() - start, problem));
    (status == "right" ? right_ : wrong_)++;
    std::printf("%s: %s%s%s\n", name.c_str(), status.c_str(), problem.empty() ? "" : ": ", Printable(problem).c_str());
    std::fflush(stdout);
  }

  // A description of the first wrong kernel.
  std::string Trace(const std::string& name, const std::string& problem) {
    std::string found, last;
    Ended ended = RunChild(Self({"--trace", name}), std::min(kTraceSeconds, std::max(Left(), kMinSeconds)), [&](const std::string& line) {
      if (line.rfind(kCallBegins, 0) == 0) last = line;
      if (!Keep(line)) return;
      JsonValue value = JsonValue::Parse(line.data(), line.size(), "a line");
      if (value["stage"].Text() == "first wrong kernel") found = "; first wrong kernel: " + value["kernel"].Text() + ": " + Shortened(value["problem"].Text(1 << 20), 300);
      if (value["stage"].Text() != "no wrong kernel") return;
      found = value["compared"].Whole(0, 1 << 30) ? "; no kernel alone is wrong" : "; no kernel fails, and what each must leave is not recorded";
    });
    if (!found.empty()) return problem + found;
    return problem + "; run kernel by kernel, it ends in " + (last.empty() ? "no call" : last) + ": " + ended.Words();
  }

  // The script of the peers writes its results by itself, so that they are kept when it is ended.
  void Peers() {
    double seconds = Left() * kShareOfPeers;
    if (seconds < kMinSeconds) return;
    std::vector<std::string> command{options_.python, "-m", kPeers, options_.pack, results_.path(), Seconds(seconds), "--only", options_.only};
    Ended ended = RunChild(command, seconds + 5, [&](const std::string& line) {
      std::printf("%s\n", Printable(line).c_str());
      std::fflush(stdout);
    });
    if (ended.status != 0 && !ended.late) std::printf("the script of the peers failed: %s\n", Printable(ended.Words()).c_str());
  }

  Options options_;
  double started_;
  std::string id_;
  Results results_;
  std::vector<Listed> listed_;
  int right_ = 0, wrong_ = 0, known_ = 0, skipped_ = 0;
};

int RunAll(const Options& options) {
  std::string about = options.pack + "/pack.json";
  FileBytes file(about);
  JsonValue pack = JsonValue::Parse(reinterpret_cast<const char*>(file.span().data), file.span().size, about);
  std::string out = Environment("OUT"), before = options.pack + "/results.json";
  std::string path = out.empty() ? before : out + "/results.json";
  if (access(path.c_str(), F_OK) != 0 && access(before.c_str(), R_OK) == 0) Results::Copy(before, path);
  return Run(options, pack, path).All();
}

int Main(int count, char** arguments) {
  std::vector<std::string> words(arguments + 1, arguments + count);
  if (words.size() == 2 && words[1] == "--device") return DescribeDevice(words[0]);
  if (words.size() == 3 && words[1] == "--entry") return RunEntry(words[0], words[2]);
  if (words.size() == 3 && words[1] == "--trace") return TraceEntry(words[0], words[2]);
  if (words.size() == 4 && words[1] == "--record") return RecordEntry(words[0], words[2], words[3]);
  Options options;
  bool usage = words.empty() || words.size() % 2 == 0;
  if (!usage) options.pack = words[0];
  for (size_t i = 1; !usage && i + 1 < words.size(); i += 2) {
    if (words[i] == "--budget") {
      options.budget = std::atof(words[i + 1].c_str());
    } else if (words[i] == "--only") {
      options.only = words[i + 1];
    } else if (words[i] == "--python") {
      options.python = words[i + 1];
    } else {
      usage = true;
    }
  }
  if (usage || !(options.budget > 0)) {
    std::fprintf(stderr, "usage: run [--budget SECONDS] [--only TEXT] [--python PROGRAM]\n");
    return 2;
  }
  return RunAll(options);
}

}  // namespace
}  // namespace tensorwright::pack

int main(int count, char** arguments) {
  try {
    return tensorwright::pack::Main(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", tensorwright::Printable(error.what()).c_str());
    return 2;
  }
}
