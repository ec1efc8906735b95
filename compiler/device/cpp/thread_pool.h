/* The thread pool of compiled modules: one per process, even if several libraries contain this code. */
#ifndef TENSORWRIGHT_THREAD_POOL_H_
#define TENSORWRIGHT_THREAD_POOL_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Argument of a part of a parallel region, in addition to its number and the region's data (TVMParallelGroupEnv). */
typedef struct {
  void* sync_handle;
  int32_t num_task;
} TensorwrightGroup;

typedef int (*TensorwrightPart)(int number, TensorwrightGroup* group, void* data);

/* TVMBackendParallelLaunch: runs the parts 0 to `count` - 1 of a region; with `count` 0 as many as the calling thread has
   threads. Returns 0, or -1 if a part failed; its error (the first part's of several) is then the calling thread's. Threads
   for which `tensorwright_pool_set_threads` was not called compute in TVM's own pool. */
int tensorwright_pool_launch(TensorwrightPart part, void* data, int count);

/* Sets the number of threads, including this one, for later regions of the calling thread: reserves the helpers until the
   next call, or until the thread ends. 0: none, and TVM's own pool. Returns the actual number: fewer than requested if the
   system cannot start more. */
int tensorwright_pool_set_threads(int threads);

/* Work of one thread in a region: nanoseconds of CLOCK_MONOTONIC, the thread (0: the one that launched the region) and the
   number of parts it ran. */
typedef struct {
  int64_t begin, end;
  int32_t place, parts;
} TensorwrightWork;

/* Records the work in later regions of the calling thread, up to `room` entries, until the next call; NULL: stops. Returns
   the number of entries recorded since the last call. */
int tensorwright_pool_trace(TensorwrightWork* works, int room);

/* Registers the pool with TVM, for modules loaded from now on, and the function `tensorwright.set_threads` in TVM's
   registry, unless another library did. Returns 0, or -1 with an error of TVM's. */
int tensorwright_pool_register(void);

#ifdef __cplusplus
}
#endif

#endif  // TENSORWRIGHT_THREAD_POOL_H_
