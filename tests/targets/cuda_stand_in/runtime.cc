// libcudart.so.13: memory, copies, streams, events and graphs. As the real one it needs a driver that is new enough.
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstring>
#include <memory>

#include "device.h"

using namespace stand_in;

namespace {

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t Said(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

struct Event {
  Stream* stream = nullptr;
  bool recorded = false, done = false;
  std::chrono::steady_clock::time_point time;
};

using Guard = std::lock_guard<std::recursive_mutex>;

cudaError_t Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, Stream* stream) {
  if (bytes == 0) return cudaSuccess;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  if (from_device != IsOnDevice(from, bytes) || to_device != IsOnDevice(to, bytes)) return cudaErrorInvalidValue;
  Log(std::string("copy ") + (from_device ? to_device ? "within" : "out" : "in") + " " + std::to_string(bytes));
  // What pageable memory holds is taken at once, unless a graph is captured, which reads it when it is launched.
  std::shared_ptr<std::vector<char>> taken;
  if (!from_device && !stream->capturing) {
    taken = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
  }
  bool queued = Enqueue(stream, [=] { Touching([&] { std::memcpy(to, taken ? taken->data() : from, bytes); }); });
  return queued ? cudaSuccess : cudaErrorStreamCaptureImplicit;
}

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureImplicit: return "cudaErrorStreamCaptureImplicit";
    default: return "cudaErrorUnknown";
  }
}

const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorMemoryAllocation ? "out of memory" : cudaGetErrorName(error); }

cudaError_t cudaGetDeviceCount(int* count) {
  if (Setting("STAND_IN_DRIVER", 13000) < 13000) return Said(cudaErrorInsufficientDriver);
  *count = static_cast<int>(Setting("STAND_IN_DEVICES", 1));
  return *count ? cudaSuccess : Said(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
  int count = 0;
  if (cudaError_t error = cudaGetDeviceCount(&count)) return error;
  return device < count ? cudaSuccess : Said(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  int capability = static_cast<int>(Setting("STAND_IN_CAPABILITY", 90));
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = capability / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability % 10; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
    default: *value = 1 << 16;
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  std::strcpy(properties->name, "stand-in");
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Guard guard(mutex);
  *free = FreeBytes(), *total = TotalBytes();
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  Guard guard(mutex);
  if (BreaksCapture()) return Said(cudaErrorStreamCaptureUnsupported);
  *memory = bytes ? Allocate(bytes) : nullptr;
  return bytes == 0 || *memory ? cudaSuccess : Said(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* memory) {
  Guard guard(mutex);
  if (!memory) return cudaSuccess;
  if (BreaksCapture()) return Said(cudaErrorStreamCaptureUnsupported);
  FinishAll();
  return Free(memory) ? cudaSuccess : Said(cudaErrorInvalidValue);
}

cudaError_t cudaMallocHost(void** memory, size_t bytes) {
  *memory = std::malloc(bytes);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  Guard guard(mutex);
  return Said(Copy(to, from, bytes, kind, StreamOf(stream)));
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t stream) {
  Guard guard(mutex);
  return Said(Copy(to, from, bytes, cudaMemcpyDeviceToDevice, StreamOf(stream)));
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  Guard guard(mutex);
  *stream = reinterpret_cast<cudaStream_t>(NewStream(flags != cudaStreamNonBlocking));
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  Guard guard(mutex);
  DeleteStream(StreamOf(stream));
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Guard guard(mutex);
  if (BreaksCapture()) return Said(cudaErrorStreamCaptureUnsupported);
  Finish(StreamOf(stream));
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Guard guard(mutex);
  auto* waited = reinterpret_cast<Event*>(event);
  Enqueue(StreamOf(stream), [waited] {
    if (waited->recorded && !waited->done) Finish(waited->stream);
  });
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  Guard guard(mutex);
  auto* gone = reinterpret_cast<Event*>(event);
  if (gone->recorded && !gone->done) Finish(gone->stream);
  delete gone;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Guard guard(mutex);
  auto* recorded = reinterpret_cast<Event*>(event);
  recorded->stream = StreamOf(stream), recorded->recorded = true, recorded->done = false;
  bool queued = Enqueue(recorded->stream, [recorded] { recorded->done = true, recorded->time = std::chrono::steady_clock::now(); });
  return queued ? cudaSuccess : Said(cudaErrorStreamCaptureImplicit);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Guard guard(mutex);
  auto* waited = reinterpret_cast<Event*>(event);
  if (BreaksCapture()) return Said(cudaErrorStreamCaptureUnsupported);
  if (waited->recorded && !waited->done) Finish(waited->stream);
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t first, cudaEvent_t second) {
  auto *begin = reinterpret_cast<Event*>(first), *end = reinterpret_cast<Event*>(second);
  if (!begin->recorded || !end->recorded) return Said(cudaErrorInvalidValue);
  if (!begin->done || !end->done) return Said(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  Guard guard(mutex);
  if (!stream) return Said(cudaErrorStreamCaptureUnsupported);
  if (StreamOf(stream)->capturing) return Said(cudaErrorIllegalState);
  StreamOf(stream)->capturing = new Graph;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Guard guard(mutex);
  Graph* captured = StreamOf(stream)->capturing;
  StreamOf(stream)->capturing = nullptr;
  *graph = nullptr;
  if (!captured) return Said(cudaErrorIllegalState);
  if (captured->broken) {
    delete captured;
    return Said(cudaErrorStreamCaptureInvalidated);
  }
  Log("capture " + std::to_string(captured->work.size()));
  *graph = reinterpret_cast<cudaGraph_t>(captured);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  Guard guard(mutex);
  FinishAll();
  delete reinterpret_cast<Graph*>(executable);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  Guard guard(mutex);
  Log("graph");
  auto* graph = reinterpret_cast<Graph*>(executable);
  bool queued = Enqueue(StreamOf(stream), [graph] {
    for (const Work& each : graph->work) each();
  });
  return queued ? cudaSuccess : Said(cudaErrorStreamCaptureImplicit);
}

}  // extern "C"
