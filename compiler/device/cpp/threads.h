// Number of threads of a run, and number of concurrent runs.
#pragma once

#include <functional>

namespace tensorwright {

// Makes the thread pool known to TVM, and gives how many threads a run uses: those of TVM_NUM_THREADS or
// OMP_NUM_THREADS, else a module's own setting (0: none), bounded by the processors that this process may use, else as many
// as there are cores. Throws Error where a variable asks for more than the machine can serve.
int SetUpThreads(int setting);

// As SetUpThreads, for a number that a caller asks for. Throws Error unless it is a number of threads that the machine serves.
void CheckThreads(int threads);

// From now on, kernels of the calling thread run on this number of threads of the pool, which it holds; 1: on itself. Throws
// Error where the system does not allow so many.
void HoldThreads(int threads);

// Calls `work` where its kernels run on that number of threads, and throws what it throws. At most `processors / threads` calls
// compute at a time, first come, first served.
void OnThreads(int threads, const std::function<void()>& work);

}  // namespace tensorwright
