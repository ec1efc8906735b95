/* Preloaded: buffers of TVM's runtime between inaccessible pages.

   While guarding is on, posix_memalign of 64 bytes or more of alignment (tensors) and TVMBackendAllocWorkspace
   (buffers of kernels) give memory of its own pages, filled with a pattern, its end (or its start) on an inaccessible
   page. Freed memory becomes inaccessible and is never given again. What was written beside a buffer, within its own
   pages, is found when it is freed. A segmentation fault ends the process: with status GUARD_STATUS where the address
   belongs to the arena, having written to the file of guard_report where that lies. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

#define PAGE ((size_t)4096)
#define ARENA ((size_t)1 << 40)
#define LARGEST ((size_t)1 << 29)   /* one buffer */
#define LARGEST_SUM ((size_t)1 << 31)
#define GUARD_STATUS 117
#define BUFFERS 8192

typedef struct { char *data; size_t bytes, pages_bytes; unsigned char fill; } Buffer;

static char *arena, *next_page;
static Buffer buffers[BUFFERS];
static size_t live_bytes;
static int guarding, at_start;
static unsigned char pattern;
static long written_beside;
static char report[1024];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static char *pages_of(const Buffer *b) { return (char *)((uintptr_t)b->data & ~(PAGE - 1)); }

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)number; (void)context;
  char *at = info->si_addr, text[160];
  int ours = arena && at >= arena && at < arena + ARENA, length;
  if (!ours) { signal(SIGSEGV, SIG_DFL); raise(SIGSEGV); return; }
  const Buffer *nearest = NULL;
  long distance = 0;
  for (int i = 0; i < BUFFERS; i++) {
    const Buffer *b = &buffers[i];
    if (!b->data) continue;
    long off = at < b->data ? at - b->data : at - (b->data + b->bytes) + 1;
    if (!nearest || labs(off) < labs(distance)) { nearest = b; distance = off; }
  }
  length = snprintf(text, sizeof text, "%ld byte(s) %s a buffer of %zu bytes", labs(distance),
                    distance < 0 ? "before" : "past the end of", nearest ? nearest->bytes : 0);
  int file = open(report, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || write(file, text, length) != length) _exit(GUARD_STATUS + 1);
  _exit(GUARD_STATUS);
}

static void *guarded(size_t bytes, size_t alignment) {
  if (bytes > LARGEST || alignment > PAGE) return NULL;
  if (alignment < 64) alignment = 64;
  size_t padded = (bytes + alignment - 1) & ~(alignment - 1);
  size_t pages = padded ? (padded + PAGE - 1) & ~(PAGE - 1) : 0;
  pthread_mutex_lock(&lock);
  int slot = -1;
  if (live_bytes + pages <= LARGEST_SUM && next_page + pages + 2 * PAGE <= arena + ARENA) {
    size_t hash = ((uintptr_t)next_page / PAGE) * 2654435761u;
    for (int i = 0; i < BUFFERS && slot < 0; i++)
      if (!buffers[(hash + i) % BUFFERS].data) slot = (hash + i) % BUFFERS;
  }
  if (slot < 0) { pthread_mutex_unlock(&lock); return NULL; }
  char *start = next_page + PAGE;
  if (pages && mprotect(start, pages, PROT_READ | PROT_WRITE)) { pthread_mutex_unlock(&lock); return NULL; }
  next_page = start + pages;  /* the page after it is the one before the next */
  next_page += PAGE;
  live_bytes += pages;
  Buffer *b = &buffers[slot];
  b->data = at_start ? start : start + pages - padded;
  b->bytes = bytes;
  b->pages_bytes = pages;
  b->fill = pattern;
  void *data = b->data;
  pthread_mutex_unlock(&lock);
  if (pages) memset(start, pattern, pages);
  return data;
}

static void release(char *data) {
  pthread_mutex_lock(&lock);
  Buffer *found = NULL;
  for (int i = 0; i < BUFFERS && !found; i++)
    if (buffers[i].data == data) found = &buffers[i];
  if (!found) { pthread_mutex_unlock(&lock); return; }
  Buffer b = *found;
  found->data = NULL;
  live_bytes -= b.pages_bytes;
  pthread_mutex_unlock(&lock);
  if (!b.pages_bytes) return;
  char *start = pages_of(&b), *end;
  /* A buffer that ends on a page begins in its first page; one that begins on a page ends in its last. */
  end = start + b.pages_bytes;
  for (char *c = start; c < b.data; c++) if ((unsigned char)*c != b.fill) { written_beside++; break; }
  for (char *c = b.data + b.bytes; c < end; c++) if ((unsigned char)*c != b.fill) { written_beside++; break; }
  madvise(start, b.pages_bytes, MADV_DONTNEED);
  mprotect(start, b.pages_bytes, PROT_NONE);
}

static int in_arena(const void *p) { return arena && (char *)p >= arena && (char *)p < arena + ARENA; }

void guard_report(const char *path) { strncpy(report, path, sizeof report - 1); }

/* 0, or -1 where there is no address space. */
int guard_begin(int fill, int start) {
  if (!arena) {
    void *all = mmap(NULL, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) return -1;
    arena = next_page = all;
    static char stack[1 << 16];
    stack_t alternative = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaltstack(&alternative, NULL);
    sigaction(SIGSEGV, &action, NULL);
  }
  pattern = (unsigned char)fill;
  at_start = start;
  guarding = 1;
  return 0;
}

/* How often something was written beside a buffer since the last call. */
long guard_end(void) {
  guarding = 0;
  long found = written_beside;
  written_beside = 0;
  return found;
}

void *guard_allocate(size_t bytes) { return guarded(bytes, 64); }
void guard_free(void *data) { if (in_arena(data)) release(data); }

int posix_memalign(void **out, size_t alignment, size_t bytes) {
  if (guarding && alignment >= 64) {
    *out = guarded(bytes, alignment);
    return *out ? 0 : ENOMEM;
  }
  void *data = __libc_memalign(alignment, bytes);
  if (!data) return ENOMEM;
  *out = data;
  return 0;
}

void free(void *data) {
  if (in_arena(data)) release(data); else __libc_free(data);
}

void *TVMBackendAllocWorkspace(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type; (void)id; (void)code; (void)bits;
  return guarding ? guarded(bytes, 64) : __libc_memalign(64, bytes ? bytes : 1);
}

int TVMBackendFreeWorkspace(int type, int id, void *data) {
  (void)type; (void)id;
  free(data);
  return 0;
}
