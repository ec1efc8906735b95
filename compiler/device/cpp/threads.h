// Number of threads per run, and number of concurrent runs.
#pragma once

#include <functional>

namespace tensorwright {

// Registers the thread pool with TVM, and returns the number of threads per run: TVM_NUM_THREADS or OMP_NUM_THREADS,
// otherwise a module's own setting (0: none), limited to the processors that this process may use, otherwise the number
// of cores. Throws Error if a variable exceeds the number that the machine supports.
int SetUpThreads(int setting);

// As SetUpThreads, for a number requested by a caller. Throws Error unless the machine supports that number.
void CheckThreads(int threads);

// Makes later kernels of the calling thread run on this number of threads of the pool, which it holds; 1: on itself.
// Throws Error if the system does not permit that many.
void HoldThreads(int threads);

// Calls `work` with its kernels on that number of threads, and passes on its exceptions. At most `processors / threads`
// calls compute at a time, first come, first served.
void OnThreads(int threads, const std::function<void()>& work);

}  // namespace tensorwright
