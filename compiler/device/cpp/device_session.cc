#include "device_session.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <tvm/ffi/reflection/registry.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "checked_json.h"
#include "device.h"
#include "module.h"
#include "processor.h"
#include "report.h"
#include "threads.h"
#include "whole_number.h"
#include "wire.h"

namespace tensorwright {
namespace {

constexpr int kMaxRuns = 100'000;

void LimitFiles(const SessionLimits& limits) {
  rlimit files, none{0, 0};
  std::signal(SIGXFSZ, SIG_IGN);  // exceeding the size limit makes write() fail instead of ending the process
  if (getrlimit(RLIMIT_FSIZE, &files) == 0 && files.rlim_cur > limits.module_bytes) {
    files.rlim_cur = static_cast<rlim_t>(limits.module_bytes);
    setrlimit(RLIMIT_FSIZE, &files);
  }
  setrlimit(RLIMIT_CORE, &none);
}

// A whole number in a request, from 1 to `most`.
uint64_t NumberOf(const std::string& text, uint64_t most, const char* what) {
  uint64_t value = WholeNumber(text, most);
  if (value == 0) throw Error(std::string(what) + " must be a number from 1 to " + std::to_string(most) + ", not '" + text.substr(0, 32) + "'");
  return value;
}

class ModuleSession {
 public:
  ModuleSession(int descriptor, const Storage& storage, const std::string& scratch, const TrustedKeys& trusted, const SessionLimits& limits)
      : descriptor_(descriptor), storage_(storage), path_(scratch + "/module.twm"), trusted_(trusted), limits_(limits) {}

  // False if the client is done.
  bool Next() {
    std::string request;
    if (!Receive(kMaxRequest, &request)) return false;
    std::string answer;
    try {
      answer = "ok " + Do(request.substr(0, request.find(' ')), request.find(' ') == std::string::npos ? "" : request.substr(request.find(' ') + 1));
    } catch (const std::exception& error) {
      answer = std::string("error ") + error.what();
    }
    return Answer(answer);
  }

 private:
  std::string Do(const std::string& verb, const std::string& argument) {
    if (verb == "active") return ActiveText();
    if (verb == "upload") return Upload(NumberOf(argument, limits_.module_bytes, "the size of a module"));
    if (verb == "check") return Opened().digest;
    if (verb == "verify") return Number(Loaded().Verify());
    if (verb == "times") return Times(static_cast<int>(NumberOf(argument, kMaxRuns, "the number of runs")));
    if (verb == "measure") return Measure(static_cast<int>(NumberOf(argument, kMaxRuns, "the number of runs")));
    if (verb == "activate") return Activate();
    throw Error("the request '" + verb + "' is not known");
  }

  std::string ActiveText() {
    std::string problem, digest = storage_.Active(trusted_, &problem);
    return digest + (problem.empty() ? "" : " " + problem);
  }

  std::string Upload(uint64_t size) {
    module_.reset(), artifact_.reset(), file_.reset(), proven_ = false;
    unlink(path_.c_str());
    int file = CreateFile(path_, size);
    std::string data;
    int problem = 0;
    bool alive = Answer("ok ");
    for (uint64_t left = size; alive && left;) {
      alive = Receive(kMaxData, &data);
      if (!alive) break;
      if (data.empty() || data.size() > left) problem = problem ? problem : EPROTO;
      // After a write error the rest is still received: the client reads the answer once it has sent everything.
      for (size_t done = 0; !problem && done < data.size();) {
        ssize_t count = write(file, data.data() + done, data.size() - done);
        if (count < 0 && errno != EINTR) problem = errno;
        done += static_cast<size_t>(std::max<ssize_t>(count, 0));
      }
      left -= std::min<uint64_t>(left, data.empty() ? left : data.size());
    }
    if (close(file) != 0 && !problem) problem = errno;
    if (!alive) _exit(0);  // the client closed the connection midway
    if (problem) throw Error(std::string("the module could not be stored: ") + std::strerror(problem));
    return "";
  }

  const Artifact& Opened() {
    if (!artifact_ && access(path_.c_str(), F_OK) != 0) throw Error("no module was uploaded");
    if (!artifact_) {
      file_ = std::make_unique<FileBytes>(path_);
      artifact_ = Artifact::FromMemory(file_->span(), "the module", &trusted_);
    }
    return *artifact_;
  }

  Module& Loaded() {
    Opened();
    if (!module_) module_ = std::make_unique<Module>(artifact_);
    return *module_;
  }

  std::string Number(double value) {
    proven_ = true;
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
  }

  std::string Measure(int runs) {
    Module& module = Loaded();
    std::vector<double> times = module.Measure(module.ExampleInputs(), runs, 1);
    return std::to_string(Percentile(times, 0.5)) + " " + std::to_string(Percentile(times, 0.99));
  }

  std::string Times(int runs) {
    Module& module = Loaded();
    Report report(false);
    report.Add("device", JsonText(module.DeviceName()), "");
    ReportTimes(&module, module.ExampleInputs(), {runs, !module.DeviceName().empty(), false}, &report);
    return report.Json();
  }

  std::string Activate() {
    if (!proven_) throw Error("a module becomes active only after its reference run");
    storage_.Activate(path_);
    return "";
  }

  bool Receive(size_t longest, std::string* content) {
    char data[32 << 10];
    while (!TakeFrame(&received_, longest, content)) {
      ssize_t count = recv(descriptor_, data, sizeof data, 0);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return false;
      received_.append(data, static_cast<size_t>(count));
    }
    return true;
  }

  bool Answer(const std::string& content) {
    std::string frame = Frame(content);
    return send(descriptor_, frame.data(), frame.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(frame.size());
  }

  int descriptor_;
  const Storage& storage_;
  std::string path_, received_;
  const TrustedKeys& trusted_;
  SessionLimits limits_;
  std::unique_ptr<FileBytes> file_;
  std::shared_ptr<Artifact> artifact_;
  std::unique_ptr<Module> module_;
  bool proven_ = false;
};

// A file of the session; names that lead outside are refused.
std::string FileOf(const std::string& scratch, const std::string& name, uint64_t most) {
  if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos) throw Error("'" + name + "' is not a plain file name");
  if (BytesIn(scratch) > most) throw Error("the files of this session take more than " + std::to_string(most) + " bytes");
  return scratch + "/" + name;
}

}  // namespace

std::string DescribeServer(bool kernels_allowed, const DeviceList& devices) {
  std::string features;
  for (const std::string& each : ProcessorFeatures()) features += (features.empty() ? "\"" : ", \"") + each + "\"";
  return std::string("{\"protocol\": ") + std::to_string(kDeviceProtocol) + ", \"format\": " + std::to_string(kFormatVersion) +
         ", \"tensorwright\": \"" TENSORWRIGHT_VERSION "\", \"tvm\": \"" TENSORWRIGHT_TVM_VERSION "\", \"architecture\": \"" + Architecture() +
         "\", \"kernels\": " + (kernels_allowed ? "true" : "false") + ", \"features\": [" + features + "], \"devices\": " + devices.json + ", \"device_problem\": " + JsonText(devices.problem) + "}";
}

void ServeModules(int descriptor, const Storage& storage, const std::string& scratch, const TrustedKeys& trusted, const SessionLimits& limits) {
  LimitFiles(limits);
  timeval pause{limits.idle_seconds, 0};
  setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &pause, sizeof pause);
  ModuleSession session(descriptor, storage, scratch, trusted, limits);
  while (session.Next()) {
  }
}

void ServeKernels(int descriptor, const std::string& scratch, const SessionLimits& limits, bool has_devices) {
  LimitFiles(limits);
  if (has_devices) LoadDevices();
  // Kernels are timed in the pool that modules run in; clients set the number of threads of TVM's pool.
  HoldThreads(SetUpThreads(0));
  auto set_threads = [](ffi::PackedArgs arguments, ffi::Any*) {
    int threads = arguments[1].cast<int>();  // the next argument: cores to prefer
    CheckThreads(threads);
    HoldThreads(threads);
  };
  ffi::Function::SetGlobal("runtime.config_threadpool", ffi::Function::FromPacked(set_threads), true);
  uint64_t most = limits.module_bytes;
  tvm::ffi::reflection::GlobalDef()
      .def("tvm.rpc.server.workpath", [scratch, most](const ffi::String& name) { return ffi::String(FileOf(scratch, name, most)); })
      .def("tvm.rpc.server.load_module", [scratch, most](const ffi::String& name) { return ffi::Module::LoadFromFile(FileOf(scratch, name, most)); });
  (*ffi::Function::GetGlobal("rpc.ServerLoop"))(descriptor);
}

}  // namespace tensorwright
