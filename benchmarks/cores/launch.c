// Replaces TVMBackendParallelLaunch: runs the parts of a parallel region one after the other, and notes how long each took.
// Either all on the calling thread, or one of them there, and before it all others on a second thread.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

typedef struct {
  void *sync_handle;
  int32_t num_task;
} Group;  // TVMParallelGroupEnv

typedef int (*Part)(int number, Group *group, void *closure);

static int parts = 1;
static int64_t *notes = NULL;  // of each region: the number of parts, its time, the time of each part (nanoseconds)
static int64_t used = 0, room = 0;
static volatile uint8_t *lines = NULL;
static int64_t line_bytes = 0;

static int timed = -1;  // the part that runs on the calling thread; -1: all
static struct {
  pthread_t thread;
  int processor, started, stop, status;
  int wanted, done;  // regions
  Part part;
  void *closure;
  int count;
} other;

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

// Regions run in so many parts; before each, `evicted` bytes are read, so that it finds none of its data in the caches
// of a core.
void set_parts(int count, int64_t evicted) {
  parts = count;
  free((void *)lines);
  lines = evicted ? calloc(evicted, 1) : NULL;
  line_bytes = lines ? evicted : 0;
}

// More parts than there are cores are shared out in contiguous ranges.
static int is_timed(int number, int count) {
  int64_t cores = count < parts ? count : parts;
  return timed < 0 || (timed < cores && number >= count * timed / cores && number < count * (timed + 1) / cores);
}

static int run_others(void) {
  Group group = {NULL, other.count};
  int status = 0;
  for (int i = 0; i < other.count && !status; ++i) {
    if (!is_timed(i, other.count)) status = other.part(i, &group, other.closure);
  }
  return status;
}

static void *serve(void *unused) {
  (void)unused;
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(other.processor, &own);
  sched_setaffinity(0, sizeof own, &own);
  for (int seen = 0;;) {
    int wanted = __atomic_load_n(&other.wanted, __ATOMIC_ACQUIRE);
    if (__atomic_load_n(&other.stop, __ATOMIC_ACQUIRE)) return NULL;
    if (wanted == seen) {
      sched_yield();
      continue;
    }
    other.status = run_others();
    seen = wanted;
    __atomic_store_n(&other.done, seen, __ATOMIC_RELEASE);
  }
}

// Of each region, the calling thread runs and times this part alone, -1: all of them. The others run on the given processor.
// Returns 0 if there is no thread for them.
int time_part(int number, int processor) {
  if (number >= 0 && !other.started) {
    other.processor = processor, other.stop = other.wanted = other.done = 0;
    if (pthread_create(&other.thread, NULL, serve, NULL)) return 0;
    other.started = 1;
  }
  if (number < 0 && other.started) {
    __atomic_store_n(&other.stop, 1, __ATOMIC_RELEASE);
    pthread_join(other.thread, NULL);
    other.started = 0;
  }
  timed = number;
  return 1;
}

static int run_elsewhere(Part part, void *closure, int count) {
  other.part = part, other.closure = closure, other.count = count;
  int wanted = other.wanted + 1;
  __atomic_store_n(&other.wanted, wanted, __ATOMIC_RELEASE);
  while (__atomic_load_n(&other.done, __ATOMIC_ACQUIRE) != wanted) sched_yield();
  return other.status;
}

void forget(void) { used = 0; }
int64_t noted(void) { return used; }
const int64_t *first_note(void) { return notes; }

int launch(Part part, void *closure, int wanted) {
  int count = wanted ? wanted : parts, status = 0;
  if (used + 2 + count > room) {
    room = 2 * (used + 2 + count) + 4096;
    notes = realloc(notes, room * sizeof *notes);
  }
  int64_t *region = notes + used, start = now();
  used += 2 + count;
  Group group = {NULL, count};
  if (timed >= 0) status = run_elsewhere(part, closure, count);
  for (int i = 0; i < count && !status; ++i) {
    if (!is_timed(i, count)) {
      region[2 + i] = INT64_MAX;
      continue;
    }
    for (int64_t at = 0; at < line_bytes; at += 64) (void)lines[at];
    int64_t begin = now();
    status = part(i, &group, closure);
    region[2 + i] = now() - begin;
  }
  region[0] = count;
  region[1] = now() - start;
  return status;
}
