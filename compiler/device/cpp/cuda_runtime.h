// The functions of libcudart.so.13 that are called here, and the errors that they return.
#pragma once

#include <cstddef>
#include <string>

namespace tensorwright {

using CudaHandle = void*;  // a stream, an event or a graph

struct CudaRuntime {
  int (*SetDevice)(int);
  int (*MemGetInfo)(size_t*, size_t*);
  int (*GetLastError)();
  const char* (*GetErrorName)(int);
  const char* (*GetErrorString)(int);
  int (*EventCreate)(CudaHandle*);
  int (*EventRecord)(CudaHandle, CudaHandle);
  int (*EventSynchronize)(CudaHandle);
  int (*EventElapsedTime)(float*, CudaHandle, CudaHandle);
  int (*EventDestroy)(CudaHandle);
  int (*StreamCreateWithFlags)(CudaHandle*, unsigned);
  int (*StreamSynchronize)(CudaHandle);
  int (*StreamDestroy)(CudaHandle);
  int (*StreamBeginCapture)(CudaHandle, int);
  int (*StreamEndCapture)(CudaHandle, CudaHandle*);
  int (*GraphInstantiate)(CudaHandle*, CudaHandle, unsigned long long);
  int (*GraphDestroy)(CudaHandle);
  int (*GraphExecDestroy)(CudaHandle);
  int (*GraphLaunch)(CudaHandle, CudaHandle);

  // Throws Error for a result that is not 0: `what` failed, and the driver's message.
  void Check(int result, const char* what) const;
};

// Loads the CUDA runtime and TVM's part for it, once. Throws Error where they are missing or do not fit together.
const CudaRuntime& LoadCudaRuntime();

// Throws Error where a failure's text names a cause that is known: too little memory (`memory` says how much there is), code
// for other devices, PTX that the driver is too old for.
void ExplainCudaFailure(const std::string& failure, const std::string& memory);

}  // namespace tensorwright
