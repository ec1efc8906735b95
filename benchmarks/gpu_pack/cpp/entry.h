// One entry of a pack: a module, its inputs, and the expected results.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "checked_json.h"
#include "manifest.h"
#include "numbers.h"

namespace tensorwright::pack {

constexpr uint64_t kSampleSeed = 1;

// A tensor that must come out: as in numbers.h, `samples` drawn by kSampleSeed.
struct Reference {
  std::string name;
  std::vector<int64_t> shape;
  int64_t samples;
  Summary summary;
};

struct Case {
  std::vector<JsonValue> inputs;  // as MakeTensor takes them
  std::vector<Reference> outputs;
};

// A kernel: which tensors of a call it writes that others read, by their place among its tensors, and the operations of a
// call, 0 where they are not known.
struct Kernel {
  std::vector<size_t> results;
  double operations = 0;
};

// What a call of a kernel must leave in its results.
struct Call {
  std::string kernel;
  std::vector<Reference> results;
};

struct Entry {
  std::string name, folder;
  Manifest manifest;  // what decides which device runs it
  std::vector<JsonValue> parameters;
  std::vector<Case> cases;
  std::map<std::string, Kernel> kernels;
  std::vector<Call> calls;  // of the first case; empty where they were not recorded
  Tolerance tolerance, call_tolerance;
  std::string stored;     // tensors that are written out
  std::string simulated;  // path of the library that simulates the kernels; empty for a device

  // Throws Error where the pack has no such entry, or it is damaged.
  Entry(const std::string& pack, const std::string& name);
};

// A file of a pack, which is compressed by gzip. Throws Error.
std::string ReadCompressed(const std::string& path);

}  // namespace tensorwright::pack
