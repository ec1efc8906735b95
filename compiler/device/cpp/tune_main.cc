// Measures the candidates of a pack:  run [--results FILE] [--seconds N]
//
// The pack is the folder of this program, made by `tensorwright tune --pack`. FILE (results.json in the pack) is
// written as measurements are made; existing measurements are not repeated. Each task runs in a separate process, so
// that a candidate that crashes, hangs or disables the device only affects itself. After N seconds (540) it stops, and
// can be started again.
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "checked_json.h"
#include "tune_kernels.h"
#include "whole_number.h"

namespace tensorwright {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLeaders = 3;
constexpr double kSecondsOfACandidate = 30;
const char* const kUsage = "usage: run [--results FILE] [--seconds N]\n";

struct Options {
  std::string results;
  double seconds = 540;
};

std::string FolderOfProgram() {
  char path[4096];
  ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
  if (length <= 0) throw Error("/proc/self/exe cannot be read", "mount /proc");
  std::string program(path, static_cast<size_t>(length));
  return program.substr(0, program.rfind('/'));
}

bool Parse(int count, char** arguments, Options* options) {
  for (int i = 1; i + 1 < count; i += 2) {
    std::string name = arguments[i];
    if (name == "--results") options->results = arguments[i + 1];
    if (name == "--seconds") options->seconds = std::atof(arguments[i + 1]);
    if (name != "--results" && name != "--seconds") return false;
  }
  return count % 2 == 1 && options->seconds > 0;
}

// Output of a task's process: a line for each step that it begins, and one for each result, with tab-separated fields.
std::string LineOf(const TuneResult& result) {
  std::string line = "result\t" + std::to_string(result.candidate) + "\t" + (result.compared ? "1" : "0") + "\t" + result.status + "\t";
  for (double each : result.seconds) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g ", each);
    line += text;
  }
  std::string note = result.note;
  for (char& letter : note) letter = letter == '\t' || letter == '\n' ? ' ' : letter;
  return line + "\t" + Shortened(note, 400) + "\n";
}

void Say(int descriptor, const std::string& line) {
  if (write(descriptor, line.data(), line.size()) != static_cast<ssize_t>(line.size())) _exit(1);
}

// A line for an error, with its own line ends escaped.
std::string ErrorLine(std::string text) {
  for (char& letter : text) letter = letter == '\t' ? ' ' : letter == '\n' ? '\r' : letter;
  return "error\t" + text + "\n";
}

// The process of a task: measures candidates without results, then the leaders alternately.
[[noreturn]] void Work(const TunePlan& plan, TuneResults results, size_t task, int descriptor) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    Say(descriptor, "begin\t0\n");
    TuneKernels kernels(plan);
    Say(descriptor, "device\t" + kernels.DeviceName() + "\n");
    kernels.Open(task);
    for (size_t i = 0; i < plan.tasks[task].symbols.size(); ++i) {
      if (results.Has(task, i, false)) continue;
      Say(descriptor, "begin\t" + std::to_string(i) + "\n");
      TuneResult result = kernels.Measure(i);
      Say(descriptor, LineOf(result));
      if (result.status == "run-error") _exit(0);  // the device may be unusable in this process
      results.Note(result);
    }
    Say(descriptor, "leaders\n");
    std::vector<size_t> leaders = results.Leaders(task, kLeaders);
    if (leaders.size() > 1 && !results.Has(task, 0, true)) {
      for (const TuneResult& each : kernels.Compare(leaders)) Say(descriptor, LineOf(each));
    }
  } catch (const std::exception& error) {
    Say(descriptor, ErrorLine(error.what()));
  }
  _exit(0);
}

std::vector<std::string> Fields(const std::string& line) {
  std::vector<std::string> fields{""};
  for (char letter : line) {
    if (letter == '\t') fields.emplace_back();
    if (letter != '\t') fields.back() += letter;
  }
  return fields;
}

// A child process, and its output so far.
class Worker {
 public:
  template <typename Function>
  explicit Worker(Function work) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw Error(std::string("no pipe to a process: ") + std::strerror(errno));
    std::fflush(nullptr);
    process_ = fork();
    if (process_ < 0) throw Error(std::string("no process for a task: ") + std::strerror(errno));
    if (process_ == 0) {
      close(ends[0]);
      work(ends[1]);
    }
    close(ends[1]);
    descriptor_ = ends[0];
  }
  ~Worker() {
    close(descriptor_);
    if (process_ > 0) kill(process_, SIGKILL), waitpid(process_, nullptr, 0);
  }
  Worker(const Worker&) = delete;

  // The next line; false at the end, and if none arrives in time (`late`).
  bool Next(double seconds, std::string* line, bool* late) {
    auto end = Clock::now() + std::chrono::duration<double>(seconds);
    for (;;) {
      size_t stop = text_.find('\n');
      if (stop != std::string::npos) {
        *line = text_.substr(0, stop);
        text_.erase(0, stop + 1);
        return true;
      }
      int left = static_cast<int>(std::chrono::duration<double, std::milli>(end - Clock::now()).count());
      pollfd wait{descriptor_, POLLIN, 0};
      int ready = left > 0 ? poll(&wait, 1, left) : 0;
      *late = ready == 0;
      if (ready < 0 && errno == EINTR) continue;
      if (ready <= 0) return false;
      char buffer[4096];
      ssize_t count = read(descriptor_, buffer, sizeof buffer);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return false;
      text_.append(buffer, static_cast<size_t>(count));
    }
  }

  // "signal 11 (Segmentation fault)"
  std::string Ended() {
    int status = 0;
    waitpid(process_, &status, 0);
    process_ = -1;
    return WIFSIGNALED(status) ? std::string("signal ") + std::to_string(WTERMSIG(status)) + " (" + strsignal(WTERMSIG(status)) + ")" : "exit status " + std::to_string(WEXITSTATUS(status));
  }

 private:
  pid_t process_ = -1;
  int descriptor_ = -1;
  std::string text_;
};

class Run {
 public:
  Run(const TunePlan& plan, TuneResults* results, Clock::time_point end) : plan_(plan), results_(results), end_(end) {}

  // False if the time runs out before everything is measured.
  bool All() {
    for (size_t task = 0; task < plan_.tasks.size(); ++task) {
      while (!skipped_.count(task) && !IsDone(task)) {
        if (Clock::now() >= end_) return false;
        Work(task);
      }
      Report(task);
    }
    return true;
  }

 private:
  bool IsDone(size_t task) const {
    for (size_t i = 0; i < plan_.tasks[task].symbols.size(); ++i) {
      if (!results_->Has(task, i, false)) return false;
    }
    return results_->Has(task, 0, true) || results_->Leaders(task, kLeaders).size() < 2;
  }

  // Runs a task in one process, until it ends.
  void Work(size_t task) {
    Worker worker([&](int descriptor) { tensorwright::Work(plan_, *results_, task, descriptor); });
    size_t current = 0;
    in_turns_ = false;
    std::string problem = Listen(&worker, task, &current);
    if (problem.empty()) return;
    bool known = results_->Has(task, current, false);
    if (!known) Add(task, current, problem.find("no answer") == 0 ? "timeout" : "crash", problem);
    // Without the default nothing can be compared; and a repeatable failure would be repeated forever.
    if (current == 0 || known || in_turns_) Skip(task, problem);
  }

  // Reads a process's output; returns why it ended if not by itself.
  std::string Listen(Worker* worker, size_t task, size_t* current) {
    std::string line;
    bool late = false;
    while (worker->Next(kSecondsOfACandidate, &line, &late)) {
      std::vector<std::string> fields = Fields(line);
      if (fields[0] == "begin") *current = WholeNumber(fields[1]);
      if (fields[0] == "device") device_ = fields[1];
      if (fields[0] == "leaders") in_turns_ = true;
      if (fields[0] == "result" && fields.size() == 6) Take(task, fields);
      if (fields[0] == "error") {
        for (char& letter : fields[1]) letter = letter == '\r' ? '\n' : letter;
        if (device_.empty()) throw Error(fields[1]);  // the device itself, not a candidate
        return fields[1];
      }
    }
    if (late) return "no answer within " + std::to_string(static_cast<int>(kSecondsOfACandidate)) + " s";
    std::string ended = worker->Ended();
    return ended == "exit status 0" ? "" : ended;
  }

  void Take(size_t task, const std::vector<std::string>& fields) {
    TuneResult result;
    result.task = task, result.candidate = WholeNumber(fields[1]), result.compared = fields[2] == "1";
    result.status = fields[3], result.note = fields[5], result.unix_time = std::time(nullptr);
    const char* text = fields[4].c_str();
    for (char* stop = nullptr;; text = stop) {
      double seconds = std::strtod(text, &stop);
      if (stop == text) break;
      result.seconds.push_back(seconds);
    }
    results_->Add(result, device_);
  }

  void Add(size_t task, size_t candidate, const std::string& status, const std::string& note) {
    TuneResult result;
    result.task = task, result.candidate = candidate, result.status = status, result.note = note, result.unix_time = std::time(nullptr);
    results_->Add(result, device_);
  }

  void Skip(size_t task, const std::string& problem) {
    skipped_.insert(task);
    std::printf("%s: %s\n", plan_.tasks[task].name.c_str(), Printable(problem).c_str());
  }

  void Report(size_t task) const {
    double before = 0, best = 0;
    int right = 0;
    for (const TuneResult& each : results_->all()) {
      if (each.task != task || each.compared || each.status != "ok") continue;
      double seconds = each.Median();
      if (each.candidate == 0) before = seconds;
      best = right++ ? std::min(best, seconds) : seconds;
    }
    std::printf("%zu/%zu %s: %d of %zu right, default %.1f us, best %.1f us\n", task + 1, plan_.tasks.size(), Printable(plan_.tasks[task].name).c_str(), right,
                plan_.tasks[task].symbols.size(), 1e6 * before, 1e6 * best);
    std::fflush(stdout);
  }

  const TunePlan& plan_;
  TuneResults* results_;
  Clock::time_point end_;
  std::string device_;
  std::set<size_t> skipped_;
  bool in_turns_ = false;  // whether the process compares the leaders
};

int Main(int count, char** arguments) {
  Options options;
  if (!Parse(count, arguments, &options)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.seconds));
  std::string folder = FolderOfProgram();
  TunePlan plan(folder);
  std::string path = options.results.empty() ? folder + "/results.json" : options.results;
  TuneResults results(path, plan);
  bool done = Run(plan, &results, end).All();
  std::printf("%s\n", done ? ("all candidates are measured: tensorwright tune --take " + path).c_str() : "the time limit is reached: start again to continue, or take the results so far");
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
