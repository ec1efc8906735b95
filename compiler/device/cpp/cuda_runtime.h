// The functions of libcudart.so.13 that are called here, and their errors.
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

  // Throws Error for a nonzero result: `what` failed, and the driver's message.
  void Check(int result, const char* what) const;
};

// Loads the CUDA runtime and TVM's part for it, once. Throws Error if they are missing or incompatible.
const CudaRuntime& LoadCudaRuntime();

// Throws Error if a failure's text has a known cause: too little memory (`memory` describes it), code for other
// devices, PTX that is too new for the driver.
void ExplainCudaFailure(const std::string& failure, const std::string& memory);

}  // namespace tensorwright
