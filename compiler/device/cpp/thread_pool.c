/* Compiled as C for the Python package and as C++ for the programs, so it is limited to their common subset.
 *
 * A thread that runs modules holds some helpers. Each of them, and the thread itself, has a seat with a range of a region's
 * parts: its owner takes parts from the front, and when none are left takes them from the back of the others' ranges. So
 * neighboring parts stay on one core, and a helper that is not scheduled loses its range to those that run. The region ends
 * when all parts are done and every helper that took one has left; one that took none is not waited for.
 *
 * Threads that wait, for work or for the end of a region, spin before they sleep, and yield while spinning (a host may
 * deschedule a virtual processor that only pauses). If more threads want to run than there are processors, spinning takes
 * processors from threads that have work, and yielding loses one for a time slice: all waiting threads then sleep at once
 * for a while.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "thread_pool.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

/* From TVM's C interface. */
int TVMBackendParallelLaunch(TensorwrightPart part, void* data, int count);
int TVMBackendParallelBarrier(int number, TensorwrightGroup* group);
void TVMFFIErrorMoveFromRaised(void** error);
void TVMFFIErrorSetRaised(void* error);
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message);
int TVMFFIObjectDecRef(void* object);
int TVMFFIEnvModRegisterContextSymbol(const char* name, void* symbol);
typedef struct {
  int32_t type;
  uint32_t zero;
  int64_t value;
} Any; /* TVMFFIAny, of an integer */
typedef struct {
  const char* data;
  size_t size;
} Name; /* TVMFFIByteArray */
int TVMFFIFunctionCreate(void* self, int (*call)(void*, const Any*, int32_t, Any*), void (*deleter)(void*), void** made);
int TVMFFIFunctionGetGlobal(const Name* name, void** found);
int TVMFFIFunctionSetGlobal(const Name* name, void* function, int override);

#ifdef __cplusplus
}
#endif

/* Microseconds. */
enum {
  CALM_SPIN = 300, /* longer than regions of a run wait for each other, and most runs of a loop */
  BUSY_SPIN = 5,   /* regions of some kernels follow each other that fast */
  LOST = 50,       /* a spinning thread that did not see the clock for so long was not running */
  LONG_LOST = 500, /* longer than a processor takes to wake */
  MOST_LOST = 6000,
  BETWEEN_LOOKS = 1000,
  LEAST_BUSY = 30000,
  MOST_BUSY = 250000
};
enum { PAUSES = 8 }; /* some 0.1 microseconds */
enum { INTEGER = 1 }; /* kTVMFFIInt */
enum { RANGE_BITS = 15, MOST_PARTS = (1 << RANGE_BITS) - 1 };
/* A range in a word: the number of parts left, the end, and whether the seat's helper is in the region. */
static const uint32_t LEFT = MOST_PARTS, HELPED = 1u << 2 * RANGE_BITS;

typedef struct Seat Seat;

typedef struct {
  int seats; /* that have a range */
  uint32_t failed; /* 1 + the first part that failed so far; 0: none */
  void* error; /* its error, of TVM */
} Region;

/* Never freed: a late helper may read its own seat and wake its region's owner at any time. */
struct Seat {
  /* Written at each region: a helper reads only this cache line before its first part. */
  uint32_t parts;  /* a range */
  uint32_t asleep; /* a futex: 1 while the thread sleeps, until somebody makes it 0 */
  uint32_t woken;  /* when somebody did, in microseconds */
  int place;       /* in the owner's team */
  Seat* owner;     /* of the region: the seat of the thread that launched it */
  TensorwrightPart part;
  void* data;
  TensorwrightGroup group;
  int seats;  /* of the region */
  int traced; /* works are noted */

  /* For a thread that launches regions. */
  Region region __attribute__((aligned(64)));
  Seat* next; /* in a list of free ones */
  Seat** team; /* this seat, and those of the helpers */
  int helpers, room;
  int threads; /* that its regions use; 0: TVM's pool */
  int inside;  /* a region: those that its parts launch run here */
  int32_t extent; /* of the next region's loop; 0: not known */
  TensorwrightWork* works; /* where a trace notes them; NULL: there is none */
  int works_room, works_noted;
} __attribute__((aligned(64)));

static struct {
  pthread_mutex_t lock;
  Seat* idle;      /* seats of helpers that nobody holds */
  Seat* vacant;    /* seats of callers that ended */
  pthread_key_t ending;
  pthread_once_t once;
  int processors;
} pool = {PTHREAD_MUTEX_INITIALIZER, NULL, NULL, 0, PTHREAD_ONCE_INIT, 0};

static uint32_t lost, lost_at, looked_at, was_crowded, busy_until, busy_for; /* microseconds, of all threads */
static __thread Seat* own_seat;

static uint32_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint32_t)((uint64_t)time.tv_sec * 1000000u + (uint64_t)time.tv_nsec / 1000u);
}

static int64_t nanoseconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ __volatile__("yield");
#elif defined(__riscv)
  __asm__ __volatile__(".4byte 0x0100000f"); /* pause, which older assemblers do not know */
#endif
}

static int is_busy(uint32_t time) { return __atomic_load_n(&busy_until, __ATOMIC_RELAXED) - time - 1 < MOST_BUSY; }

/* True if the system has more runnable threads than processors. */
static int is_crowded(void) {
  char text[64]; /* "0.20 0.18 0.12 3/80 11206": 3 run */
  int file = open("/proc/loadavg", O_RDONLY | O_CLOEXEC), running = 0, fields = 0;
  if (file < 0) return 0;
  ssize_t size = read(file, text, sizeof text);
  close(file);
  for (ssize_t i = 0; i < size && text[i] != '/'; ++i) {
    if (text[i] == ' ') fields++;
    else if (fields == 3) running = 10 * running + (text[i] - '0');
  }
  return running > pool.processors;
}

/* True if threads lost more than an eighth of the time in long intervals. It covers processes limited to some processors,
   which the system's load does not show. */
static int is_short_of_time(uint32_t length, uint32_t time) {
  uint32_t leaked = (time - __atomic_exchange_n(&lost_at, time, __ATOMIC_RELAXED)) / 8;
  uint32_t sum = __atomic_load_n(&lost, __ATOMIC_RELAXED);
  sum = (sum > leaked ? sum - leaked : 0) + length;
  __atomic_store_n(&lost, sum, __ATOMIC_RELAXED);
  return sum > MOST_LOST;
}

/* Records that a runnable thread was not scheduled since then. If that is because the processors are oversubscribed, all
   threads sleep early for a while, with exponential backoff. */
static void note_lost(uint32_t since, uint32_t time) {
  uint32_t length = time - since;
  if (length < LOST || is_busy(time)) return;
  int crowded = length >= LONG_LOST && is_short_of_time(length, time);
  if (!crowded && time - __atomic_load_n(&looked_at, __ATOMIC_RELAXED) > BETWEEN_LOOKS) {
    __atomic_store_n(&looked_at, time, __ATOMIC_RELAXED);
    int before = __atomic_exchange_n(&was_crowded, is_crowded(), __ATOMIC_RELAXED);
    crowded = before && __atomic_load_n(&was_crowded, __ATOMIC_RELAXED);
  }
  if (!crowded) return;
  uint32_t until = __atomic_load_n(&busy_until, __ATOMIC_RELAXED), last = __atomic_load_n(&busy_for, __ATOMIC_RELAXED);
  last = time - until < last ? 2 * last : (uint32_t)LEAST_BUSY;
  if (last > MOST_BUSY) last = MOST_BUSY;
  __atomic_store_n(&lost, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&busy_for, last, __ATOMIC_RELAXED);
  __atomic_store_n(&busy_until, time + last, __ATOMIC_RELAXED);
}

static void wake(Seat* seat) {
  if (!__atomic_load_n(&seat->asleep, __ATOMIC_SEQ_CST)) return;
  __atomic_store_n(&seat->woken, now(), __ATOMIC_RELAXED);
  if (__atomic_exchange_n(&seat->asleep, 0, __ATOMIC_SEQ_CST)) {
    syscall(SYS_futex, &seat->asleep, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
  }
}

static int holds(const uint32_t* word, uint32_t mask, int set) {
  return ((__atomic_load_n(word, __ATOMIC_SEQ_CST) & mask) != 0) == set;
}

/* Spins until some bit of the mask is set in a word (`set` 1), or none is (0). Returns 0 if that took too long. Unless
   other threads compete for the processor, yields while spinning: that they take it is noticed soon. */
static int spin_until(const uint32_t* word, uint32_t mask, int set) {
  uint32_t begin = 0, last = 0;
  for (int turn = 0;; ++turn) {
    for (int i = 0; i < PAUSES; ++i) {
      if (holds(word, mask, set)) return 1;
      relax();
    }
    uint32_t time = now();
    int busy = is_busy(time);
    if (turn == 0) begin = last = time;
    note_lost(last, time);
    last = time;
    if (time - begin > (uint32_t)(busy ? BUSY_SPIN : CALM_SPIN)) return 0;
    if (!busy) sched_yield();
  }
}

/* Waits in the same way on the thread of `seat`, which soon sleeps: the thread that changes the word wakes it. */
static void wait_until(Seat* seat, const uint32_t* word, uint32_t mask, int set) {
  while (!spin_until(word, mask, set)) {
    __atomic_store_n(&seat->asleep, 1, __ATOMIC_SEQ_CST);
    while (!holds(word, mask, set) && __atomic_load_n(&seat->asleep, __ATOMIC_RELAXED)) {
      syscall(SYS_futex, &seat->asleep, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
    }
    if (!__atomic_exchange_n(&seat->asleep, 0, __ATOMIC_ACQUIRE)) note_lost(__atomic_load_n(&seat->woken, __ATOMIC_RELAXED), now());
  }
}

static uint32_t range(int first, int end) { return (uint32_t)end << RANGE_BITS | (uint32_t)(end - first); }

/* Takes the first part of the seat's own range; -1: there is none. */
static int take_own(Seat* seat) {
  uint32_t parts = __atomic_load_n(&seat->parts, __ATOMIC_ACQUIRE);
  while (parts & LEFT) {
    if (__atomic_compare_exchange_n(&seat->parts, &parts, (parts - 1) | HELPED, 1, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
      return (int)((parts >> RANGE_BITS & LEFT) - (parts & LEFT));
    }
  }
  return -1;
}

/* Takes the last part of another seat's range; -1: there is none. */
static int take_last(Seat* seat) {
  uint32_t parts = __atomic_load_n(&seat->parts, __ATOMIC_RELAXED);
  while (parts & LEFT) {
    if (__atomic_compare_exchange_n(&seat->parts, &parts, parts - (1u << RANGE_BITS) - 1, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      return (int)(parts >> RANGE_BITS & LEFT) - 1;
    }
  }
  return -1;
}

static void note_failure(Region* region, int number) {
  void* error = NULL;
  TVMFFIErrorMoveFromRaised(&error);
  pthread_mutex_lock(&pool.lock);
  if (!region->failed || (uint32_t)number < region->failed - 1) {
    void* former = region->error;
    region->failed = (uint32_t)number + 1, region->error = error, error = former;
  }
  pthread_mutex_unlock(&pool.lock);
  if (error) TVMFFIObjectDecRef(error);
}

static void run_part(Seat* seat, int number) {
  if (seat->part(number, &seat->group, seat->data) != 0) note_failure(&seat->owner->region, number);
}

/* Runs the given part, which the seat took, and all that nobody else takes. First wakes two other helpers, as each of them
   does, too. */
static void run_parts(Seat* seat, int number) {
  Seat* owner = seat->owner;
  int place = seat->place, seats = seat->seats;
  TensorwrightWork work = {seat->traced ? nanoseconds() : 0, 0, place, 0};
  for (int i = 2 * place + 1; i <= 2 * place + 2 && i < seats; ++i) wake(owner->team[i]);
  for (; number >= 0; number = take_own(seat), ++work.parts) run_part(seat, number);
  for (int i = place + 1; i < place + seats; ++i) {
    Seat* other = owner->team[i % seats];
    for (; (number = take_last(other)) >= 0; ++work.parts) run_part(seat, number);
  }
  if (!seat->traced || !work.parts) return;
  work.end = nanoseconds();
  int noted = __atomic_fetch_add(&owner->works_noted, 1, __ATOMIC_RELAXED);
  if (noted < owner->works_room) owner->works[noted] = work;
}

static void* help(void* argument) {
  Seat* seat = own_seat = (Seat*)argument;
  seat->inside = 1;
  for (;;) {
    wait_until(seat, &seat->parts, LEFT, 1);
    int number = take_own(seat);
    if (number < 0) continue;
    Seat* owner = seat->owner;
    run_parts(seat, number);
    __atomic_exchange_n(&seat->parts, 0, __ATOMIC_SEQ_CST);
    wake(owner);
  }
  return NULL;
}

static Seat* new_seat(void) {
  void* memory = NULL;
  if (posix_memalign(&memory, 128, sizeof(Seat)) != 0) return NULL;
  return (Seat*)memset(memory, 0, sizeof(Seat));
}

/* A thread that blocks all signals: they are for the program's own threads. */
static Seat* new_helper(void) {
  sigset_t all, before;
  pthread_attr_t attributes;
  pthread_t thread;
  Seat* seat = new_seat();
  if (!seat) return NULL;
  sigfillset(&all);
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failed = pthread_create(&thread, &attributes, help, seat);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  if (!failed) return seat;
  free(seat);
  return NULL;
}

static Seat* popped(Seat** list) {
  Seat* seat = *list;
  if (seat) *list = seat->next;
  return seat;
}

static void push(Seat** list, Seat* seat) {
  seat->next = *list;
  *list = seat;
}

/* Gives the seat that number of helpers, or as many as possible. The lock is held. */
static void hold_helpers(Seat* seat, int count) {
  while (seat->helpers > count) push(&pool.idle, seat->team[seat->helpers--]);
  if (count >= seat->room) {
    Seat** team = (Seat**)realloc(seat->team, ((size_t)count + 1) * sizeof(Seat*));
    if (!team) return;
    seat->team = team, seat->room = count + 1;
    team[0] = seat;
  }
  while (seat->helpers < count) {
    Seat* helper = popped(&pool.idle);
    if (!helper && !(helper = new_helper())) return;
    seat->team[++seat->helpers] = helper;
  }
}

static void leave(void* argument) {
  Seat* seat = (Seat*)argument;
  own_seat = NULL;
  pthread_mutex_lock(&pool.lock);
  hold_helpers(seat, 0);
  seat->threads = 0;
  seat->works = NULL;
  push(&pool.vacant, seat);
  pthread_mutex_unlock(&pool.lock);
}

static void before_fork(void) { pthread_mutex_lock(&pool.lock); }

static void after_fork(void) { pthread_mutex_unlock(&pool.lock); }

/* After a fork, the child only has the calling thread. */
static void in_child(void) {
  pool.idle = NULL;
  if (own_seat) own_seat->helpers = 0;
  pthread_mutex_unlock(&pool.lock);
}

static void set_up(void) {
  pool.processors = (int)sysconf(_SC_NPROCESSORS_ONLN);
  pthread_key_create(&pool.ending, leave);
  pthread_atfork(before_fork, after_fork, in_child);
}

/* The seat of a thread that launches regions; NULL: out of memory. */
static Seat* seat_of_caller(void) {
  if (own_seat) return own_seat;
  pthread_once(&pool.once, set_up);
  pthread_mutex_lock(&pool.lock);
  Seat* seat = popped(&pool.vacant);
  pthread_mutex_unlock(&pool.lock);
  if (!seat) seat = new_seat();
  if (seat) pthread_setspecific(pool.ending, seat);
  return own_seat = seat;
}

int tensorwright_pool_set_threads(int threads) {
  Seat* seat = seat_of_caller();
  if (!seat) return 0;
  pthread_mutex_lock(&pool.lock);
  hold_helpers(seat, threads > 1 ? threads - 1 : 0);
  pthread_mutex_unlock(&pool.lock);
  seat->threads = threads;
  return threads ? seat->helpers + 1 : 0;
}

int tensorwright_pool_trace(TensorwrightWork* works, int room) {
  Seat* seat = seat_of_caller();
  if (!seat) return 0;
  int noted = seat->works_noted < seat->works_room ? seat->works_noted : seat->works_room;
  seat->works = works, seat->works_room = works ? room : 0, seat->works_noted = 0;
  return noted;
}

static int run_here(TensorwrightPart part, void* data) {
  TensorwrightGroup group = {NULL, 1};
  return part(0, &group, data) ? -1 : 0;
}

/* Distributes the ranges of a region's parts, last seats first, so that a seat with a range may wake those after it. */
static void hand_out(Seat* own, TensorwrightPart part, void* data, int count) {
  int seats = own->region.seats;
  for (int i = seats; i-- > 0;) {
    Seat* seat = own->team[i];
    seat->owner = own, seat->place = i, seat->seats = seats, seat->traced = own->works != NULL;
    seat->part = part, seat->data = data, seat->group.num_task = count;
    uint32_t parts = range((int)((int64_t)count * i / seats), (int)((int64_t)count * (i + 1) / seats));
    __atomic_store_n(&seat->parts, parts, __ATOMIC_RELEASE);
  }
  __atomic_thread_fence(__ATOMIC_SEQ_CST); /* a helper that goes to sleep sees its range, or is seen to sleep */
}

static int failure_of(Region* region) {
  if (!region->failed) return 0;
  if (region->error) {
    TVMFFIErrorSetRaised(region->error);
    TVMFFIObjectDecRef(region->error);
    region->error = NULL;
  } else {
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a part of a parallel region failed");
  }
  return -1;
}

/* Waits for the helpers that participate; the others have nothing left to take. */
static void join(Seat* own) {
  for (int i = 1; i < own->region.seats; ++i) {
    const uint32_t* parts = &own->team[i]->parts;
    if (spin_until(parts, HELPED, 0)) continue;
    uint32_t begin = now();
    wait_until(own, parts, HELPED, 0);
    note_lost(begin, now()); /* parts that are so uneven are few */
  }
}

int tensorwright_pool_launch(TensorwrightPart part, void* data, int count) {
  Seat* own = own_seat;
  if (!own || !(own->threads || own->inside)) return TVMBackendParallelLaunch(part, data, count);
  if (own->inside || own->helpers == 0) return run_here(part, data);
  if (count <= 0) count = own->extent > 0 && own->extent < own->threads ? own->extent : own->threads;
  own->extent = 0;
  if (count > MOST_PARTS) count = MOST_PARTS;
  Region* region = &own->region;
  region->seats = count <= own->helpers ? count : own->helpers + 1;
  region->failed = 0;
  own->inside = 1;
  hand_out(own, part, data, count);
  run_parts(own, take_own(own));
  join(own);
  own->inside = 0;
  return failure_of(region);
}

/* Parts need not run at the same time, so they cannot wait for each other. Generated code passes the extent of the next
   region's loop here: as the counter of a region of one part (compiler/codegen/kernel_lowering.py). */
static int barrier(int number, TensorwrightGroup* group) {
  Seat* own = own_seat;
  if (!own || !(own->threads || own->inside)) return TVMBackendParallelBarrier(number, group);
  if (group->num_task == 1) {
    if (group->sync_handle && !own->inside) own->extent = *(const int32_t*)group->sync_handle;
    return 0;
  }
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", "parallel regions with barriers are not supported");
  return -1;
}

static int set_threads_of_tvm(void* self, const Any* arguments, int32_t count, Any* result) {
  (void)self;
  result->type = INTEGER;
  result->value = tensorwright_pool_set_threads(count == 1 ? (int)arguments[0].value : 0);
  return 0;
}

int tensorwright_pool_register(void) {
  static const char text[] = "tensorwright.set_threads";
  Name name = {text, sizeof text - 1};
  void* function = NULL;
  if (TVMFFIFunctionGetGlobal(&name, &function) != 0) return -1;
  if (!function) {
    if (TVMFFIFunctionCreate(NULL, set_threads_of_tvm, NULL, &function) != 0) return -1;
    if (TVMFFIFunctionSetGlobal(&name, function, 0) != 0) return -1;
    if (TVMFFIEnvModRegisterContextSymbol("__TVMBackendParallelLaunch", (void*)tensorwright_pool_launch) != 0) return -1;
    if (TVMFFIEnvModRegisterContextSymbol("__TVMBackendParallelBarrier", (void*)barrier) != 0) return -1;
  }
  return TVMFFIObjectDecRef(function);
}
