#include "threads.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>

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
  thread_local int current = 0;
  if (current == threads) return;
  tvm::runtime::threading::SetMaxConcurrency(threads);
  current = threads;
}

Turn::~Turn() {
  {
    std::lock_guard<std::mutex> lock(queue_->mutex);
    ++queue_->done;
  }
  queue_->ended.notify_all();
}

}  // namespace tensorwright
