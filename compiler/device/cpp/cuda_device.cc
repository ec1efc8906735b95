// NVIDIA GPUs, through TVM's CUDA runtime. Kernels and copies use the default stream.
#include <fcntl.h>
#include <sys/wait.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "checked_json.h"
#include "cuda_driver.h"
#include "cuda_runtime.h"
#include "device.h"
#include "library.h"

namespace tensorwright {
namespace {

constexpr unsigned kNonBlocking = 1;     // cudaStreamNonBlocking
constexpr int kCaptureThreadLocal = 1;   // cudaStreamCaptureModeThreadLocal
constexpr int64_t kDefaultStream = 0;

std::string Megabytes(uint64_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

class Event {
 public:
  explicit Event(const CudaRuntime& cuda) : cuda_(cuda) { cuda_.Check(cuda_.EventCreate(&event_), "making an event"); }
  Event(Event&& other) : cuda_(other.cuda_), event_(other.event_) { other.event_ = nullptr; }
  Event(const Event&) = delete;
  ~Event() {
    if (event_) cuda_.EventDestroy(event_);
  }
  void Record(CudaHandle stream) { cuda_.Check(cuda_.EventRecord(event_, stream), "recording an event"); }
  float Since(const Event& earlier) const {
    float milliseconds = 0;
    cuda_.Check(cuda_.EventSynchronize(event_), "waiting for the GPU");
    cuda_.Check(cuda_.EventElapsedTime(&milliseconds, earlier.event_, event_), "reading an event");
    return milliseconds;
  }

 private:
  const CudaRuntime& cuda_;
  CudaHandle event_ = nullptr;
};

// A stream for the kernels of this thread during its lifetime.
class Stream {
 public:
  Stream(const CudaRuntime& cuda, int device) : cuda_(cuda), device_(device) {
    cuda_.Check(cuda_.StreamCreateWithFlags(&stream_, kNonBlocking), "making a stream");
    TVM_FFI_CHECK_SAFE_CALL(TVMFFIEnvSetStream(kDLCUDA, device_, stream_, &before_));
  }
  Stream(const Stream&) = delete;
  ~Stream() {
    TVMFFIEnvSetStream(kDLCUDA, device_, before_, nullptr);
    cuda_.StreamDestroy(stream_);
  }
  CudaHandle handle() const { return stream_; }

 private:
  const CudaRuntime& cuda_;
  int device_;
  CudaHandle stream_ = nullptr, before_ = nullptr;
};

// A CUDA graph of the launches on a stream.
class Graph {
 public:
  Graph(const CudaRuntime& cuda, CudaHandle stream, const std::function<void()>& run) : cuda_(cuda) {
    CudaHandle graph = nullptr;
    cuda_.Check(cuda_.StreamBeginCapture(stream, kCaptureThreadLocal), "capturing a CUDA graph");
    std::string problem;
    try {
      run();
    } catch (const std::exception& error) {
      problem = error.what();
    }
    int ended = cuda_.StreamEndCapture(stream, &graph);
    if (!problem.empty()) {
      cuda_.GetLastError();
      if (graph) cuda_.GraphDestroy(graph);
      throw Error("the run cannot be captured as a CUDA graph: " + problem);
    }
    cuda_.Check(ended, "capturing a CUDA graph");
    int made = cuda_.GraphInstantiate(&executable_, graph, 0);
    cuda_.GraphDestroy(graph);
    cuda_.Check(made, "making a CUDA graph");
  }
  Graph(const Graph&) = delete;
  ~Graph() { cuda_.GraphExecDestroy(executable_); }
  void Launch(CudaHandle stream) const { cuda_.Check(cuda_.GraphLaunch(executable_, stream), "launching a CUDA graph"); }

 private:
  const CudaRuntime& cuda_;
  CudaHandle executable_ = nullptr;
};

class CudaClock final : public DeviceClock {
 public:
  explicit CudaClock(const CudaRuntime& cuda) : cuda_(cuda) {}
  size_t Mark() final {
    if (used_ == events_.size()) events_.emplace_back(cuda_);
    events_[used_].Record(nullptr);
    return used_++;
  }
  double Between(size_t first, size_t second) final { return events_.at(second).Since(events_.at(first)); }
  void Reset() final { used_ = 0; }

 private:
  const CudaRuntime& cuda_;
  std::vector<Event> events_;
  size_t used_ = 0;
};

class CudaDevice final : public Device {
 public:
  CudaDevice(int index, CudaDeviceInfo info) : cuda_(LoadCudaRuntime()), info_(std::move(info)), place_{kDLCUDA, index} {
    cuda_.Check(cuda_.SetDevice(index), ("starting " + info_.name).c_str());
  }

  std::string Name() const final { return info_.name; }

  std::vector<int> Places() const final { return {kDLCUDA, place_.device_id, kPooledAllocator, kDLCPU, 0, kPooledAllocator}; }

  ffi::Tensor ToDevice(const ffi::Tensor& tensor, const ffi::Tensor* old) const final {
    bool fits = old && std::equal(old->shape().begin(), old->shape().end(), tensor.shape().begin(), tensor.shape().end());
    ffi::Tensor copy = fits ? *old : allocate_(ffi::Shape(tensor.shape()), tensor.dtype(), place_, nullptr).cast<ffi::Tensor>();
    copy_(tensor, copy);
    return copy;
  }

  std::vector<ffi::Tensor> ToHost(const std::vector<ffi::Tensor>& tensors) const final {
    std::vector<ffi::Tensor> copies;
    for (const ffi::Tensor& each : tensors) {
      if (each.device().device_type == kDLCPU) {  // sizes are computed by the virtual machine
        copies.push_back(each);
        continue;
      }
      ffi::Tensor copy = NewTensor({each.shape().begin(), each.shape().end()}, each.dtype());
      copy_(each, copy);
      copies.push_back(copy);
    }
    wait_(place_, kDefaultStream);
    return copies;
  }

  void Explain(const std::string& failure) const final { ExplainCudaFailure(failure, Memory()); }

  std::unique_ptr<DeviceClock> Clock() const final { return std::make_unique<CudaClock>(cuda_); }

  DeviceTimes Time(const std::function<void()>& run, int runs, bool graph) const final {
    wait_(place_, kDefaultStream);  // other streams do not wait for copies of inputs
    Stream stream(cuda_, place_.device_id);
    auto wait = [&] { cuda_.Check(cuda_.StreamSynchronize(stream.handle()), "waiting for the GPU"); };
    run();  // its allocations stay in TVM's pool: a graph must not contain allocations
    wait();
    if (!graph) return Timed(run, runs, stream.handle(), wait);
    Graph captured(cuda_, stream.handle(), run);
    return Timed([&] { captured.Launch(stream.handle()); }, runs, stream.handle(), wait);
  }

  void CheckMemory(uint64_t needed) const {
    size_t free = 0, total = 0;
    cuda_.Check(cuda_.MemGetInfo(&free, &total), ("starting " + info_.name).c_str());
    if (needed <= free) return;
    throw Error("the module's parameters take " + Megabytes(needed) + ", and " + Memory(), "end other programs on it, or compile the model in lower precision");
  }

 private:
  std::string Memory() const {
    size_t free = 0, total = 0;
    if (cuda_.MemGetInfo(&free, &total) != 0) return info_.name + " has " + Megabytes(info_.memory);
    return info_.name + " has " + Megabytes(free) + " free of " + Megabytes(total);
  }

  DeviceTimes Timed(const std::function<void()>& run, int runs, CudaHandle stream, const std::function<void()>& wait) const {
    Event begin(cuda_), end(cuda_);
    DeviceTimes times;
    for (int i = -1; i < runs; ++i) {  // the first run is not counted
      auto start = std::chrono::steady_clock::now();
      begin.Record(stream);
      run();
      end.Record(stream);
      wait();
      double host = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
      if (i < 0) continue;
      times.host.push_back(host);
      times.device.push_back(end.Since(begin));
    }
    return times;
  }

  const CudaRuntime& cuda_;
  CudaDeviceInfo info_;
  DLDevice place_;
  ffi::Function allocate_ = Global("runtime.TVMTensorAllocWithScope"), copy_ = Global("runtime.TVMTensorCopyFromTo");
  ffi::Function wait_ = Global("runtime.Device_StreamSync");
};

// The first device with at least the module's compute capability.
std::unique_ptr<Device> CudaDeviceFor(const Manifest& manifest, uint64_t parameter_bytes) {
  if (manifest.device_is_simulated) {
    throw Error("the module (target " + manifest.target_name + ") holds no machine code for a GPU: it runs only simulated, in the compiler",
                "compile it for a GPU");
  }
  const std::string needs = "the module (target " + manifest.target_name + ") needs an NVIDIA GPU of compute capability " +
                            CapabilityText(manifest.compute_capability) + " or newer, and ";
  std::vector<CudaDeviceInfo> devices;
  try {
    devices = CudaDevices();
    LoadCudaRuntime();
  } catch (const Error& error) {
    throw Error(needs + error.what());
  }
  std::string found;
  for (size_t i = 0; i < devices.size(); ++i) {
    if (devices[i].compute_capability >= manifest.compute_capability) {
      auto device = std::make_unique<CudaDevice>(static_cast<int>(i), devices[i]);
      device->CheckMemory(parameter_bytes);
      return device;
    }
    found += (i ? ", " : "") + devices[i].name + " (" + CapabilityText(devices[i].compute_capability) + ")";
  }
  throw Error(needs + "this machine has " + found, "compile it for this GPU");
}

// The list of devices; if there are none, a 0 byte and the reason.
std::string Devices() {
  std::string list, problem;
  try {
    for (const CudaDeviceInfo& each : CudaDevices()) {
      list += std::string(list.empty() ? "" : ", ") + "{\"name\": " + JsonText(each.name) + ", \"compute_capability\": " +
              std::to_string(each.compute_capability) + ", \"memory\": " + std::to_string(each.memory) + "}";
    }
    LoadCudaRuntime();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  return "[" + list + "]" + '\0' + problem;
}

std::string ReadAll(int descriptor) {
  std::string text;
  char buffer[4096];
  for (;;) {
    ssize_t count = read(descriptor, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return text;
    text.append(buffer, static_cast<size_t>(count));
  }
}

}  // namespace

std::unique_ptr<Device> DeviceFor(const Manifest& manifest, uint64_t parameter_bytes) {
  if (manifest.device_kind.empty()) return std::make_unique<Device>();
  if (manifest.device_kind != "cuda") throw Error("the module needs an unknown kind of device: " + Quoted(manifest.device_kind));
  return CudaDeviceFor(manifest, parameter_bytes);
}

DeviceList DescribeDevices() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return {"[]", std::string("no pipe to the process that looks for GPUs: ") + std::strerror(errno)};
  pid_t child = fork();
  if (child == 0) {
    std::string found = Devices();
    bool written = write(ends[1], found.data(), found.size()) == static_cast<ssize_t>(found.size());
    _exit(written ? 0 : 1);
  }
  close(ends[1]);
  std::string text = ReadAll(ends[0]);
  close(ends[0]);
  int status = 1;
  if (child > 0) waitpid(child, &status, 0);
  size_t end = text.find('\0');
  if (status == 0 && end != std::string::npos) return {text.substr(0, end), text.substr(end + 1)};
  return {"[]", "the GPU driver ended the process that queries devices"};
}

void LoadDevices() {
  CudaDevices();
  LoadCudaRuntime();
}

}  // namespace tensorwright
