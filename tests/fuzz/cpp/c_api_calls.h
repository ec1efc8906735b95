// Calls of the C API with what no caller should pass.
#pragma once

#include <cstdint>
#include <string>
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

}  // namespace tensorwright
