// Does what it is told, line by line, with the C++ runtime, mostly under sanitizers, and answers each line with "ok" or
// the error:
//
//   load MODULE           read it, load its code with the system's loader, run its example
//   check MODULE          read it, and do nothing with it
//   read MODULE           the same without running its code, which is mapped as in static programs
//   inputs MODULE FILE    check a file of inputs for a module
//   image FILE            read a picture, and write it as a PNG file
//   capi MODULE           call the C API wrongly; the answer is what each call said
//   sessions MODULE FILE  the same for sessions, which write FILE; threads MODULE: sessions in several threads
//   states MODULE FILE    load a file of states in a session, and make a step
//   overrun               read past the end of memory, which the sanitizers must report
//
// A defect ends the process.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>

#include "c_api_calls.h"
#include "exercise.h"
#include "image.h"
#include "module.h"

extern "C" __attribute__((weak)) int __lsan_do_recoverable_leak_check();  // none without sanitizers

namespace tensorwright {
namespace {

constexpr int kLeakCheckEvery = 256;
constexpr char kNewLine = '\x1e';  // in an answer, which is one line

void Load(const std::string& path) {
  Module module(Artifact::Open(path));
  module.Run(module.ExampleInputs());
  if (!module.artifact().reference_output_descriptions.empty()) module.Verify();
}

const Artifact& Kept(const std::string& path) {
  static std::map<std::string, std::shared_ptr<Artifact>> kept;
  auto& artifact = kept[path];
  if (!artifact) artifact = Artifact::Open(path);
  return *artifact;
}

int Overrun(size_t at) {
  std::vector<int> memory(8);
  return memory.data()[at];
}

std::string Do(const std::string& line) {
  std::istringstream words(line);
  std::string command, module, inputs;
  words >> command >> module >> inputs;
  if (command == "load") {
    Load(module);
  } else if (command == "check") {
    Check(FileBytes(module).span());
  } else if (command == "read") {
    ReadAll(FileBytes(module).span());
  } else if (command == "inputs") {
    ReadInputsOf(Kept(module), FileBytes(inputs).span());
  } else if (command == "image") {
    WritePng(module + ".png", ReadImage(FileBytes(module).span(), module));
  } else if (command == "capi") {
    return CallWrongly(module.c_str());
  } else if (command == "sessions") {
    return CallSessionsWrongly(module.c_str(), inputs.c_str());
  } else if (command == "threads") {
    return UseSessionsInThreads(module.c_str());
  } else if (command == "states") {
    return LoadStates(module.c_str(), inputs.c_str());
  } else if (command == "overrun") {
    return std::to_string(Overrun(line.size() + 1));
  } else {
    throw Error("unknown command " + Quoted(command));
  }
  return "ok";
}

std::string Answer(const std::string& line) {
  try {
    return Do(line);
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace
}  // namespace tensorwright

int main() {
  int count = 0;
  for (std::string line; std::getline(std::cin, line); ++count) {
    std::string answer = tensorwright::Answer(line);
    const bool looks = __lsan_do_recoverable_leak_check != nullptr && count % tensorwright::kLeakCheckEvery == 0;
    if (looks && __lsan_do_recoverable_leak_check()) return 1;
    std::replace(answer.begin(), answer.end(), '\n', tensorwright::kNewLine);
    std::fwrite(answer.data(), 1, answer.size(), stdout);
    std::fputc('\n', stdout);
    std::fflush(stdout);
  }
  return 0;
}
