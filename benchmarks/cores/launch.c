// Replaces TVMBackendParallelLaunch: runs the parts of a parallel region one after the other on the calling thread, and
// notes how long each took.
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
  for (int i = 0; i < count && !status; ++i) {
    for (int64_t at = 0; at < line_bytes; at += 64) (void)lines[at];
    int64_t begin = now();
    status = part(i, &group, closure);
    region[2 + i] = now() - begin;
  }
  region[0] = count;
  region[1] = now() - start;
  return status;
}
