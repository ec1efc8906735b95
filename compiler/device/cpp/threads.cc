#include "threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <string>

#include "error.h"

namespace tensorwright {
namespace {

// The same as in the Python package (runtime/threads.py), which says why.
constexpr int kThreadsOfAProcessor = 4, kLeastMostThreads = 64;
const char* const kSpins = "1000";

int Processors() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
  return std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
}

// TVM takes the first of the variables that is there, and the number that it begins with.
void CheckEnvironment(int most) {
  for (const char* variable : {"TVM_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char* text = std::getenv(variable);
    if (!text) continue;
    const char* begin = text + std::strspn(text, " \t\n");
    int threads = 0;
    std::from_chars(begin + (*begin == '+'), text + std::strlen(text), threads);
    if (threads >= 1 && threads <= most) return;
    throw Error(std::string(variable) + " must be a number of threads from 1 to " + std::to_string(most) + " on this machine, not " + Quoted(text));
  }
}

}  // namespace

void SetUpThreads(int setting) {
  int processors = Processors(), most = std::max(kLeastMostThreads, kThreadsOfAProcessor * processors);
  if (setting) setenv("TVM_NUM_THREADS", std::to_string(std::min(setting, processors)).c_str(), 0);
  CheckEnvironment(most);
  setenv("TVM_BIND_THREADS", "0", 0);
  setenv("TVM_THREAD_POOL_SPIN_COUNT", kSpins, 0);
}

}  // namespace tensorwright
