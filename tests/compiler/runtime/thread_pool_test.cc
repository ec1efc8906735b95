// The thread pool alone, under sanitizers. Each check is of what must come out whichever thread ran when.
#include "thread_pool.h"

#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

thread_local std::string* raised = nullptr;  // an error of TVM's, as the pool sees it
int tvm_launches = 0;

void Check(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}
#define CHECK(...) Check(__VA_ARGS__, #__VA_ARGS__)

}  // namespace

extern "C" {
int TVMBackendParallelLaunch(TensorwrightPart, void*, int) { return ++tvm_launches, 0; }
int TVMBackendParallelBarrier(int, TensorwrightGroup*) { return 0; }
void TVMFFIErrorMoveFromRaised(void** error) { *error = raised, raised = nullptr; }
void TVMFFIErrorSetRaised(void* error) { raised = new std::string(*static_cast<std::string*>(error)); }
void TVMFFIErrorSetRaisedFromCStr(const char*, const char* message) { raised = new std::string(message); }
int TVMFFIObjectDecRef(void* error) { return delete static_cast<std::string*>(error), 0; }
int TVMFFIEnvModRegisterContextSymbol(const char*, void*) { return 0; }
int TVMFFIFunctionCreate(void*, int (*)(void*, const void*, int32_t, void*), void (*)(void*), void**) { return 0; }
int TVMFFIFunctionGetGlobal(const void*, void**) { return 0; }
int TVMFFIFunctionSetGlobal(const void*, void*, int) { return 0; }
}

namespace {

struct Counts {
  std::vector<int> runs = std::vector<int>(1024);  // of each part; not atomic: no part runs twice, and all are done at the end
  int parts = 0;
};

int CountPart(int number, TensorwrightGroup* group, void* data) {
  auto* counts = static_cast<Counts*>(data);
  ++counts->runs[number];
  if (number == 0) counts->parts = group->num_task;
  return 0;
}

void RunsEachPartOnce(int threads, int count) {
  Counts counts;
  CHECK(tensorwright_pool_launch(CountPart, &counts, count) == 0);
  int expected = threads == 1 ? 1 : count ? count : threads;
  CHECK(counts.parts == expected);
  for (int i = 0; i < 1024; ++i) CHECK(counts.runs[i] == (i < expected));
}

void RegionsOf(const std::vector<int>& threads, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (int each : threads) {
      CHECK(tensorwright_pool_set_threads(each) == each);
      for (int count : {0, 1, 2, 7, 1000}) RunsEachPartOnce(each, count);
    }
  }
}

int SystemThreads() {
  int count = 0;
  DIR* folder = opendir("/proc/self/task");
  while (dirent* each = readdir(folder)) count += each->d_name[0] != '.';
  closedir(folder);
  return count;
}

// Callers hold helpers of their own, and the next ones take those that callers before them had.
void SeveralCallers() {
  int before = 0;
  for (int turn = 0; turn < 4; ++turn) {
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; ++i) callers.emplace_back([] { RegionsOf({3, 2, 4}, 60); });
    for (auto& each : callers) each.join();
    if (turn == 0) before = SystemThreads();
    CHECK(SystemThreads() <= before + 3);  // threads that were joined may still be counted
  }
}

struct Stolen {
  std::thread::id caller = std::this_thread::get_id();
  bool caller_waits;
  std::atomic<int> done{0};
  std::atomic<bool> waits{false};
};

// The first part that one of the two threads takes ends when all the others are done, which the other thread has to do.
int WaitForOthers(int, TensorwrightGroup* group, void* data) {
  auto* stolen = static_cast<Stolen*>(data);
  bool is_caller = std::this_thread::get_id() == stolen->caller;
  if (is_caller == stolen->caller_waits && !stolen->waits.exchange(true)) {
    while (stolen->done < group->num_task - 1) std::this_thread::yield();
  }
  ++stolen->done;
  return 0;
}

void OthersTakeWhatAThreadDoesNot() {
  tensorwright_pool_set_threads(2);
  for (bool caller_waits : {true, false}) {
    for (int round = 0; round < 50; ++round) {
      Stolen stolen;
      stolen.caller_waits = caller_waits;
      CHECK(tensorwright_pool_launch(WaitForOthers, &stolen, 100) == 0);
      CHECK(stolen.done == 100);
    }
  }
}

int Nested(int, TensorwrightGroup*, void* data) {
  Counts counts;
  CHECK(tensorwright_pool_launch(CountPart, &counts, 0) == 0);
  CHECK(counts.parts == 1 && counts.runs[0] == 1 && counts.runs[1] == 0);
  ++*static_cast<std::atomic<int>*>(data);
  return 0;
}

int Fail(int number, TensorwrightGroup*, void* data) {
  if (number < *static_cast<int*>(data)) return 0;
  raised = new std::string(std::to_string(number));
  return 1;
}

void Errors() {
  for (int threads : {1, 2, 4}) {
    tensorwright_pool_set_threads(threads);
    for (int first : {0, 3, 7}) {
      int limit = threads == 1 ? 0 : first;
      CHECK(tensorwright_pool_launch(Fail, &limit, 8) == -1);
      CHECK(raised && *raised == std::to_string(limit));
      delete raised;
      raised = nullptr;
      RunsEachPartOnce(threads, 0);
    }
  }
}

void Forks() {
  tensorwright_pool_set_threads(3);
  RunsEachPartOnce(3, 0);
  pid_t child = fork();
  if (child == 0) {
    Counts counts;
    CHECK(tensorwright_pool_launch(CountPart, &counts, 0) == 0);  // alone
    RegionsOf({3, 2}, 3);
    _exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  RunsEachPartOnce(3, 0);
}

}  // namespace

int main(int count, char** arguments) {
  Counts counts;
  CHECK(tensorwright_pool_launch(CountPart, &counts, 0) == 0 && tvm_launches == 1);  // no number of threads: TVM's pool
  RegionsOf({1, 2, 3, 8, 2, 1, 5}, 40);
  SeveralCallers();
  OthersTakeWhatAThreadDoesNot();
  std::atomic<int> nested{0};
  tensorwright_pool_set_threads(3);
  CHECK(tensorwright_pool_launch(Nested, &nested, 12) == 0 && nested == 12);
  Errors();
  if (count < 2 || std::strcmp(arguments[1], "without-fork") != 0) Forks();
  CHECK(tensorwright_pool_set_threads(0) == 0);
  CHECK(tensorwright_pool_launch(CountPart, &counts, 0) == 0 && tvm_launches == 2);
  return 0;  // while helpers spin or sleep
}
