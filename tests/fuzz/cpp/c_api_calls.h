// Calls of the C API with what no caller should pass.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tensorwright.h"

namespace tensorwright {

// The answer to each call on a module of one input x: float32[n, 16], one after another on lines of their own; then that
// to a right one.
inline std::string CallWrongly(const char* path) {
  std::string answers;
  auto note = [&](const char* call, int failed) {
    answers += std::string(call) + ": " + (failed ? tensorwright_last_error() : "ok") + "\n";
  };
  tensorwright_module* module = nullptr;
  note("load without a path", tensorwright_load(nullptr, &module));
  note("load without a place", tensorwright_load(path, nullptr));
  note("load without keys", tensorwright_load_trusted(path, nullptr, 1, &module));
  if (tensorwright_load(path, &module)) return answers + tensorwright_last_error();
  tensorwright_tensor described;
  note("describe no module", tensorwright_input(nullptr, 0, &described));
  note("describe input -1", tensorwright_input(module, -1, &described));
  note("describe output 9", tensorwright_output(module, 9, &described));
  note("describe to nowhere", tensorwright_input(module, 0, nullptr));
  note("share no module", tensorwright_share(nullptr, &module));
  note("share to nowhere", tensorwright_share(module, nullptr));
  note("threads of no module", tensorwright_set_threads(nullptr, 1));

  std::vector<float> data(32, 1.0f);
  const int64_t right[] = {2, 16}, negative[] = {-1, 16}, huge[] = {int64_t{1} << 62, 16}, other[] = {16, 2};
  const tensorwright_tensor sound{"x", "float32", 2, right, data.data(), 128};
  tensorwright_tensor output;
  auto run = [&](const char* call, tensorwright_tensor input) { note(call, tensorwright_run(module, &input, &output)); };
  auto with = [&](auto change) {
    tensorwright_tensor input = sound;
    change(input);
    return input;
  };
  note("run no module", tensorwright_run(nullptr, &sound, &output));
  note("run without inputs", tensorwright_run(module, nullptr, &output));
  note("run without outputs", tensorwright_run(module, &sound, nullptr));
  run("no shape", with([](auto& input) { input.shape = nullptr; }));
  run("no data", with([](auto& input) { input.data = nullptr; }));
  run("rank -1", with([](auto& input) { input.rank = -1; }));
  run("rank 2^30", with([](auto& input) { input.rank = 1 << 30; }));
  run("rank 0", with([](auto& input) { input.rank = 0, input.bytes = 4; }));
  run("negative size", with([&](auto& input) { input.shape = negative; }));
  run("size 2^62", with([&](auto& input) { input.shape = huge, input.bytes = 0; }));
  run("other shape", with([&](auto& input) { input.shape = other; }));
  run("too few bytes", with([](auto& input) { input.bytes = 4; }));
  run("other type", with([](auto& input) { input.dtype = "float64"; }));
  run("no type", with([](auto& input) { input.dtype = "what"; }));
  run("right", sound);
  answers += "unknown type: " + std::to_string(tensorwright_element_bytes("what") + tensorwright_element_bytes(nullptr)) + "\n";
  tensorwright_free(module);
  tensorwright_free(nullptr);
  return answers;
}

// Runs a step of a session on zeros, with every symbolic dimension 1.
inline int StepOnZeros(tensorwright_session* session) {
  std::vector<tensorwright_tensor> inputs(static_cast<size_t>(tensorwright_session_input_count(session)));
  std::vector<tensorwright_tensor> outputs(static_cast<size_t>(tensorwright_session_output_count(session)));
  std::vector<std::vector<int64_t>> shapes(inputs.size());
  std::vector<std::vector<char>> contents(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (tensorwright_session_input(session, static_cast<int32_t>(i), &inputs[i])) return 1;
    size_t bytes = tensorwright_element_bytes(inputs[i].dtype);
    for (int32_t axis = 0; axis < inputs[i].rank; ++axis) {
      shapes[i].push_back(inputs[i].shape[axis] < 0 ? 1 : inputs[i].shape[axis]);
      bytes *= static_cast<size_t>(shapes[i].back());
    }
    contents[i].resize(bytes + 1);
    inputs[i].shape = shapes[i].data(), inputs[i].data = contents[i].data(), inputs[i].bytes = bytes;
  }
  return tensorwright_session_run(session, inputs.data(), outputs.data());
}

// The answer to each call on sessions of a module whose states hold rows; `file` is written.
inline std::string CallSessionsWrongly(const char* path, const char* file) {
  std::string answers;
  auto note = [&](const char* call, int failed) {
    answers += std::string(call) + ": " + (failed ? tensorwright_last_error() : "ok") + "\n";
  };
  tensorwright_module* module = nullptr;
  tensorwright_session *session = nullptr, *fork = nullptr, *other = nullptr;
  if (tensorwright_load(path, &module)) return tensorwright_last_error();
  note("open no module", tensorwright_session_open(nullptr, 4, &session));
  note("open to nowhere", tensorwright_session_open(module, 4, nullptr));
  note("open -1 rows", tensorwright_session_open(module, -1, &session));
  note("open 2^62 rows", tensorwright_session_open(module, int64_t{1} << 62, &session));
  note("open", tensorwright_session_open(module, 4, &session));
  note("run no session", tensorwright_session_run(nullptr, nullptr, nullptr));
  note("run without inputs", tensorwright_session_run(session, nullptr, nullptr));
  note("describe input 99", tensorwright_session_input(session, 99, nullptr));
  note("rewind an empty session", tensorwright_session_rewind(session, 1));
  note("rewind -1", tensorwright_session_rewind(session, -1));
  note("load no file", tensorwright_session_load(session, nullptr));
  note("load a module", tensorwright_session_load(session, path));
  note("save nowhere", tensorwright_session_save(session, "/nowhere/at/all"));
  note("fork to nowhere", tensorwright_session_fork(session, nullptr));
  note("step", StepOnZeros(session));
  note("save", tensorwright_session_save(session, file));
  note("fork", tensorwright_session_fork(session, &fork));
  tensorwright_session_free(session);
  note("step of the fork of a session that was freed", StepOnZeros(fork));
  note("open another", tensorwright_session_open(module, 4, &other));
  note("load", tensorwright_session_load(other, file));
  tensorwright_free(module);
  note("step of a session whose module was freed", StepOnZeros(fork));
  note("reset of a session whose module was freed", tensorwright_session_reset(other));
  tensorwright_session_free(other);
  tensorwright_session_free(fork);
  tensorwright_session_free(nullptr);
  return answers;
}

// Threads that use one session, against the contract: each call is answered as if alone, or refused. Then threads with a
// shared module and a session of their own: every call is answered.
inline std::string UseSessionsInThreads(const char* path) {
  constexpr int kThreads = 4, kCalls = 50;
  tensorwright_module* module = nullptr;
  tensorwright_session* session = nullptr;
  if (tensorwright_load(path, &module) || tensorwright_session_open(module, 1 << 12, &session)) return tensorwright_last_error();
  std::atomic<int> answered{0}, refused{0};
  std::mutex noting;
  std::string failure;
  auto on_threads = [](auto work) {
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) threads.emplace_back([&work, i] { work(i); });
    for (std::thread& each : threads) each.join();
  };
  auto count = [&](int error) {
    std::string said = error ? tensorwright_last_error() : "";
    if (!error) ++answered;
    else if (said.find("another thread") == 0) ++refused;
    else {
      std::lock_guard<std::mutex> lock(noting);
      failure += said + "\n";
    }
  };
  on_threads([&](int thread) {
    for (int i = 0; i < kCalls; ++i) {
      tensorwright_session* fork = nullptr;
      count(StepOnZeros(session));
      if (thread % 2) {
        count(tensorwright_session_reset(session));
      } else {
        count(tensorwright_session_fork(session, &fork));
        tensorwright_session_free(fork);
      }
    }
  });
  if (tensorwright_session_length(session) > answered) failure += "it counts steps that were refused\n";
  on_threads([&](int) {
    tensorwright_module* shared = nullptr;
    tensorwright_session* own = nullptr;
    int refusals = refused;
    count(tensorwright_share(module, &shared));
    count(tensorwright_session_open(shared, kCalls, &own));
    tensorwright_free(shared);
    for (int i = 0; i < kCalls; ++i) count(StepOnZeros(own));
    if (refused != refusals) failure = "a thread with a module of its own was refused\n";
    tensorwright_session_free(own);
  });
  tensorwright_free(module);
  tensorwright_session_free(session);
  return failure.empty() ? "ok" : failure;
}

// Loads a file of states, and makes a step on what it holds.
inline std::string LoadStates(const char* path, const char* file) {
  tensorwright_module* module = nullptr;
  tensorwright_session* session = nullptr;
  if (tensorwright_load(path, &module)) return tensorwright_last_error();
  int failed = tensorwright_session_open(module, 8, &session) || tensorwright_session_load(session, file) || StepOnZeros(session);
  std::string answer = failed ? tensorwright_last_error() : "ok";
  tensorwright_session_free(session);
  tensorwright_free(module);
  return answer;
}

}  // namespace tensorwright
