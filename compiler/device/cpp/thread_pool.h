/* The thread pool of compiled modules: one for the process, though several libraries may carry this code. */
#ifndef TENSORWRIGHT_THREAD_POOL_H_
#define TENSORWRIGHT_THREAD_POOL_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Argument of a part of a parallel region, besides its number and the region's data (TVMParallelGroupEnv). */
typedef struct {
  void* sync_handle;
  int32_t num_task;
} TensorwrightGroup;

typedef int (*TensorwrightPart)(int number, TensorwrightGroup* group, void* data);

/* TVMBackendParallelLaunch: runs the parts 0 to `count` - 1 of a region; with `count` 0 as many as the calling thread uses
   threads. Returns 0, or -1 where a part failed; its error (of several the first part's) is then the calling thread's.
   Threads that `tensorwright_pool_set_threads` was not called on compute in TVM's own pool. */
int tensorwright_pool_launch(TensorwrightPart part, void* data, int count);

/* Sets the number of threads, including this one, for later regions of the calling thread: it reserves the helpers until the
   next call, or until it ends. 0: none, and TVM's own pool. Returns the actual number: fewer than requested if the system
   starts no more. */
int tensorwright_pool_set_threads(int threads);

/* Work of one thread in a region: nanoseconds of CLOCK_MONOTONIC, the thread (0: the one that launched the region) and how many
   parts it ran. */
typedef struct {
  int64_t begin, end;
  int32_t place, parts;
} TensorwrightWork;

/* Notes the work in later regions of the calling thread, up to `room` times, until the next call; NULL: no longer. Returns how
   many have been noted since the last call. */
int tensorwright_pool_trace(TensorwrightWork* works, int room);

/* Makes the pool known to TVM, for modules that are loaded from now on, and `tensorwright.set_threads` a function of TVM's
   registry, unless another library did. Returns 0, or -1 with an error of TVM's. */
int tensorwright_pool_register(void);

#ifdef __cplusplus
}
#endif

#endif  // TENSORWRIGHT_THREAD_POOL_H_
