// A GPU made of this process: its memory, which the processor may not touch outside of kernels and copies, and
// its streams, whose work is done as late as CUDA allows: when somebody waits for it.
//
// Set by the environment: STAND_IN_KERNELS, the folder of the kernels' libraries; STAND_IN_DEVICES (1); STAND_IN_CAPABILITY
// (90); STAND_IN_MEMORY, bytes (64 MiB); STAND_IN_DRIVER, the version of CUDA (13000); STAND_IN_PTX, 0 where
// the driver does not translate PTX; STAND_IN_IDLE and STAND_IN_CRASH, names of kernels that do nothing, and that end
// the process; STAND_IN_LOG, a file that gets a line for each launch, copy and graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <vector>

namespace stand_in {

using Work = std::function<void()>;

struct Graph {
  std::vector<Work> work;
  bool broken = false;  // something was done in it that cannot be captured
};

struct Stream {
  bool blocking = true;
  std::list<Work> work;
  Graph* capturing = nullptr;
};

extern std::recursive_mutex mutex;

int64_t Setting(const char* name, int64_t otherwise);
void Log(const std::string& line);

// Memory of the device, its end at a page that nobody may touch. Null when there is too little left.
void* Allocate(size_t bytes);
bool Free(void* memory);
bool IsOnDevice(const void* memory, size_t bytes);
size_t FreeBytes();
size_t TotalBytes();
// Runs something that touches the device's memory.
void Touching(const Work& work);

// The stream of a handle; null is the default stream, which waits for blocking ones, and they for it.
Stream* StreamOf(void* handle);
Stream* NewStream(bool blocking);
void DeleteStream(Stream* stream);
// Adds work, to the graph where one is captured. False where the call is not allowed because another stream captures.
bool Enqueue(Stream* stream, Work work);
void Finish(Stream* stream);
void FinishAll();
// Whether any stream captures: then nothing may allocate, free or wait. Marks its graph as broken.
bool BreaksCapture();

}  // namespace stand_in
