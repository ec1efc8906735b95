#include "threads.h"

#include <tvm/ffi/function.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "error.h"
#include "usable_cores.h"

namespace tvm::runtime::threading {
// Threads of the calling thread's kernels, and of its pool if created later; not in the runtime's headers.
void SetMaxConcurrency(int threads);
}  // namespace tvm::runtime::threading

namespace tensorwright {
namespace {

// The same as in the Python package (runtime/threads.py), which says why.
constexpr int kThreadsOfAProcessor = 4, kLeastMostThreads = 64;
const char* const kSpins = "1000";
constexpr int kBigCores = 1;  // TVM's affinity mode for "no special wish"

int MostThreads() { return std::max(kLeastMostThreads, kThreadsOfAProcessor * UsableProcessors()); }

// The number in the first of the variables that is there, as TVM reads it; 0: there is none.
int ThreadsOfEnvironment() {
  for (const char* variable : {"TVM_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* text = std::getenv(variable);
    if (!text) continue;
    const char* begin = text + std::strspn(text, " \t\n");
    int threads = 0;
    std::from_chars(begin + (*begin == '+'), text + std::strlen(text), threads);
    if (threads >= 1 && threads <= MostThreads()) return threads;
    throw Error(std::string(variable) + " must be a number of threads from 1 to " + std::to_string(MostThreads()) + " on this machine, not " + Quoted(text));
  }
  return 0;
}

}  // namespace

int SetUpThreads(int setting) {
  int threads = ThreadsOfEnvironment();
  setenv("TVM_BIND_THREADS", "0", 0);
  setenv("TVM_THREAD_POOL_SPIN_COUNT", kSpins, 0);
  return threads ? threads : setting ? std::min(setting, UsableProcessors()) : UsableCores();
}

void CheckThreads(int threads) {
  if (threads >= 1 && threads <= MostThreads()) return;
  throw Error("threads must be a number from 1 to " + std::to_string(MostThreads()) + " on this machine, not " + std::to_string(threads));
}

namespace {

// Sets the number of threads for kernels of the calling thread; false where its pool is smaller: TVM never makes
// one larger.
bool Configure(int threads) {
  thread_local int current = 0;
  if (current == threads) return true;
  tvm::runtime::threading::SetMaxConcurrency(threads);
  current = threads;
  if (threads == 1) return true;  // kernels run inline, and no pool is touched
  static const auto count = tvm::ffi::Function::GetGlobalRequired("runtime.NumThreads");
  static const auto configure = tvm::ffi::Function::GetGlobalRequired("runtime.config_threadpool");
  count();  // makes the pool, if there is none, which then uses as many threads as there are cores of the highest frequency
  configure(kBigCores, threads);
  tvm::runtime::threading::SetMaxConcurrency(threads);  // the call above resets it
  if (count().cast<int>() != threads) current = 0;
  return current == threads;
}

// A thread that computes for one whose own pool is too small.
class Deputy {
 public:
  explicit Deputy(int most) : most(most), thread_([this] { Serve(); }) {}
  ~Deputy() {
    Hand(nullptr);
    thread_.join();
  }

  // Calls `work` on the thread, with so many threads. Throws what it throws.
  void Call(int count, const std::function<void()>& work) {
    std::packaged_task<void()> task([&] {
      if (!Configure(count)) throw Error(std::to_string(count) + " threads could not be started", "use fewer threads");
      work();
    });
    auto done = task.get_future();
    Hand(&task);
    done.get();
  }

  const int most;  // threads that its pool can have

 private:
  void Hand(std::packaged_task<void()>* task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      handed_ = true;
    }
    changed_.notify_one();
  }

  void Serve() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return handed_; });
      handed_ = false;
      if (!task_) return;
      (*task_)();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::packaged_task<void()>* task_ = nullptr;
  bool handed_ = false;
  std::thread thread_;
};

// While it lives, the calling thread may compute with so many threads: at most `processors / threads` calling threads do at
// a time, first come, first served.
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
  static auto* queues = new std::map<int, std::unique_ptr<Queue>>();  // for threads that outlive the program's end
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
  if (Configure(threads)) return work();
  thread_local std::unique_ptr<Deputy> deputy;
  if (!deputy || deputy->most < threads) deputy = std::make_unique<Deputy>(threads);
  deputy->Call(threads, work);
}

}  // namespace tensorwright
