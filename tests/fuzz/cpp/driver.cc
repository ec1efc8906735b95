// Does what it is told, line by line, with the C++ runtime under sanitizers, and answers each line with "ok" or the error:
//
//   load MODULE           read it, load its code with the system's loader, run its example
//   read MODULE           the same without running its code, which is mapped as in static programs
//   inputs MODULE FILE    check a file of inputs for a module
//
// A defect ends the process.
#include <sanitizer/lsan_interface.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>

#include "exercise.h"
#include "module.h"

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

void Do(const std::string& line) {
  std::istringstream words(line);
  std::string command, module, inputs;
  words >> command >> module >> inputs;
  if (command == "load") {
    Load(module);
  } else if (command == "read") {
    ReadAll(FileBytes(module).span());
  } else if (command == "inputs") {
    ReadInputsOf(Kept(module), FileBytes(inputs).span());
  } else {
    throw Error("unknown command " + Quoted(command));
  }
}

std::string Answer(const std::string& line) {
  try {
    Do(line);
    return "ok";
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
    if (count % tensorwright::kLeakCheckEvery == 0 && __lsan_do_recoverable_leak_check()) return 1;
    std::replace(answer.begin(), answer.end(), '\n', tensorwright::kNewLine);
    std::fwrite(answer.data(), 1, answer.size(), stdout);
    std::fputc('\n', stdout);
    std::fflush(stdout);
  }
  return 0;
}
