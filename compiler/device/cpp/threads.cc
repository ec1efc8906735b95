#include "threads.h"

#include <tvm/ffi/function.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "error.h"
#include "thread_pool.h"
#include "usable_cores.h"

namespace tensorwright {
namespace {

// The same as in the Python package (runtime/threads.py), which gives the reasons.
constexpr int kThreadsOfAProcessor = 4, kMinThreadLimit = 64;

int MaxThreads() { return std::max(kMinThreadLimit, kThreadsOfAProcessor * UsableProcessors()); }

// The number in the first of the variables that is set, as TVM reads it; 0: none is.
int ThreadsOfEnvironment() {
  for (const char* variable : {"TVM_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* text = std::getenv(variable);
    if (!text) continue;
    const char* begin = text + std::strspn(text, " \t\n");
    int threads = 0;
    std::from_chars(begin + (*begin == '+'), text + std::strlen(text), threads);
    if (threads >= 1 && threads <= MaxThreads()) return threads;
    throw Error(std::string(variable) + " must be a number of threads from 1 to " + std::to_string(MaxThreads()) + " on this machine, not " + Quoted(text));
  }
  return 0;
}

}  // namespace

int SetUpThreads(int setting) {
  int threads = ThreadsOfEnvironment();
  if (tensorwright_pool_register() != 0) throw Error("TVM did not take the thread pool");
  return threads ? threads : setting ? std::min(setting, UsableProcessors()) : UsableCores();
}

void CheckThreads(int threads) {
  if (threads >= 1 && threads <= MaxThreads()) return;
  throw Error("threads must be a number from 1 to " + std::to_string(MaxThreads()) + " on this machine, not " + std::to_string(threads));
}

namespace {

int SetThreadsOfPool(int threads) {
  static const auto set = tvm::ffi::Function::GetGlobalRequired("tensorwright.set_threads");  // from the first library that contains the pool
  return set(threads).cast<int>();
}

}  // namespace

void HoldThreads(int threads) {
  int found = SetThreadsOfPool(threads);
  if (found != threads) throw Error(std::to_string(threads) + " threads could not be started: the system allows " + std::to_string(found), "use fewer threads");
}

namespace {

// During its lifetime, the calling thread holds threads of the pool.
class Helpers {
 public:
  explicit Helpers(int threads) { HoldThreads(threads); }
  ~Helpers() { SetThreadsOfPool(1); }
  Helpers(const Helpers&) = delete;
};

// During its lifetime, the calling thread may compute with this many threads: at most `processors / threads` calling
// threads do so at a time, first come, first served.
class Turn {
 public:
  explicit Turn(int threads);
  ~Turn();
  Turn(const Turn&) = delete;

 private:
  struct Queue;
  static Queue* QueueOf(int threads);

  Queue* queue_;
};

// Runs are numbered in order of arrival (ticket lock); number n starts when fewer than `most` before it are running.
struct Turn::Queue {
  explicit Queue(int threads) : most(std::max(1, UsableProcessors() / threads)) {}

  const int most;
  std::mutex mutex;
  std::condition_variable ended;
  uint64_t taken = 0, done = 0;
};

Turn::Queue* Turn::QueueOf(int threads) {
  static std::mutex mutex;
  static auto* queues = new std::map<int, std::unique_ptr<Queue>>();  // for threads that outlive static objects
  std::lock_guard<std::mutex> lock(mutex);
  auto& queue = (*queues)[threads];
  if (!queue) queue = std::make_unique<Queue>(threads);
  return queue.get();
}

Turn::Turn(int threads) : queue_(QueueOf(threads)) {
  {
    std::unique_lock<std::mutex> lock(queue_->mutex);
    uint64_t mine = queue_->taken++;
    queue_->ended.wait(lock, [&] { return mine < queue_->done + static_cast<uint64_t>(queue_->most); });
  }
}

Turn::~Turn() {
  {
    std::lock_guard<std::mutex> lock(queue_->mutex);
    ++queue_->done;
  }
  queue_->ended.notify_all();
}

}  // namespace

void OnThreads(int threads, const std::function<void()>& work) {
  Turn turn(threads);
  Helpers helpers(threads);
  work();
}

}  // namespace tensorwright
