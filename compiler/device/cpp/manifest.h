// The part of a module's manifest that a run needs; the Python package has all of it (artifact/manifest.py). All of it
// is validated.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "formula.h"

namespace tensorwright {

// Limit on the elements of a tensor.
constexpr int64_t kMaxElements = int64_t{1} << 60;
constexpr size_t kMaxDimensions = 64;
constexpr int64_t kMaxThreads = 4096;

// Name, element type and shape of a tensor. A symbolic dimension is -1, and its name (for outputs, an expression of
// names) is in `dimensions`, which is as long as the shape.
struct Description {
  std::string name;
  std::string dtype_name;
  DLDataType dtype;  // in the module's code
  std::vector<int64_t> shape;
  std::vector<std::string> dimensions;
  bool carried = false;  // whether the code uses another element type

  // "x: float32[batch, 3]"
  std::string Text() const;
};

enum class Relation { kEqual, kAtLeast, kBroadcast };

// A relation between sizes of the inputs. The formulas' names refer to the symbolic dimensions in `symbols`.
struct Requirement {
  Formula left;
  Relation relation;
  Formula right;
  std::map<std::string, std::string> symbols;
  std::string where;
};

// An input whose elements are indices, lengths or counts: each must be in [least, size); without `least` in [-size,
// size), where negative indices count from the end of an axis.
struct IndexRequirement {
  std::string input;
  Formula size;
  std::optional<Formula> least;
  std::map<std::string, std::string> symbols;
  std::string where;
};

// A tensor that a session keeps: its input, the output with its next value, and the axis of its rows. One that grows
// has another shape there after each run, which does not write to the input.
struct State {
  std::string name;
  size_t input, output;
  std::optional<size_t> axis;
  bool grows;
};

// The input with the number of state rows in use before a run. A run adds `rows` of them, or the size of the input
// dimension with that name.
struct Position {
  size_t input;
  int64_t rows;
  std::string dimension;
};

struct Manifest {
  std::string model_name, architecture, target_name;
  std::string tvm_version;                     // the version of TVM that compiled the module
  std::vector<std::string> required_features;  // of the processor
  std::string device_kind;                     // "cuda"; empty for modules that run on the CPU
  int compute_capability = 0;                  // minimum for that device: 10 major + minor
  bool device_is_simulated = false;            // there is no machine code for one
  std::vector<Description> inputs, outputs, parameter_descriptions, reference_input_descriptions, reference_output_descriptions;
  std::vector<Description> asset_descriptions;  // files in addition to the tensors, like a tokenizer
  std::vector<State> states;
  std::optional<Position> position;
  std::vector<Description> initial_state_descriptions;
  Sizes reference_sizes;     // of the states' dimensions, in the stored example
  std::string state_format;  // equal for modules with interchangeable states
  std::vector<Requirement> requirements;
  std::vector<IndexRequirement> indices;
  int threads = 0;                // 0: no setting
  size_t compact_parameters = 0;  // number of trailing ones that the module's code expands at load
  double relative_tolerance = 1e-3, absolute_tolerance = 1e-4;
  // By kernel name: the model's nodes that each call of the kernel computes, the main one first.
  std::map<std::string, std::vector<std::vector<std::string>>> kernel_nodes;
  std::map<std::string, std::string> checksums;  // of the sections, in hexadecimal

  // Throws Error unless every field of the manifest is known and valid.
  void Parse(const char* text, size_t size, const std::string& document);

  // The symbolic dimension that only the position has, which is the number of rows in use; empty if there is none.
  std::string CountingDimension() const;

  // True if a session provides this input itself.
  bool IsOfSession(size_t input) const;
};

}  // namespace tensorwright
