// A module's manifest, as far as a run needs it; the Python package has all of it (artifact/manifest.py). All of it is checked.
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

// No tensor of more elements is described.
constexpr int64_t kMostElements = int64_t{1} << 60;
constexpr size_t kMostDimensions = 64;
constexpr int64_t kMostThreads = 4096;

// Name, element type and shape of a tensor. A symbolic dimension is -1, and has its name (for outputs, an expression of
// names) in `dimensions`, which is as long as the shape.
struct Description {
  std::string name;
  std::string dtype_name;
  DLDataType dtype;  // as the module's code has it
  std::vector<int64_t> shape;
  std::vector<std::string> dimensions;
  bool carried = false;  // the code has another element type

  // "x: float32[batch, 3]"
  std::string Text() const;
};

enum class Relation { kEqual, kAtLeast, kBroadcast };

// A relation between sizes of the inputs. The formulas' names stand for the symbolic dimensions in `symbols`.
struct Requirement {
  Formula left;
  Relation relation;
  Formula right;
  std::map<std::string, std::string> symbols;
  std::string where;
};

// An input whose elements are indices, lengths or counts: each must lie in [least, size); in [-size, size) without `least`,
// where negative indices count from the end of an axis.
struct IndexRequirement {
  std::string input;
  Formula size;
  std::optional<Formula> least;
  std::map<std::string, std::string> symbols;
  std::string where;
};

// A tensor that a session keeps: which input it is, which output is its next value, and the axis that holds rows. One that
// grows has another shape there after each run, which does not write to the input.
struct State {
  std::string name;
  size_t input, output;
  std::optional<size_t> axis;
  bool grows;
};

// The input that says how many rows of the states are in use before a run. A run adds `rows` of them, or the size of a
// dimension of the inputs where that has a name.
struct Position {
  size_t input;
  int64_t rows;
  std::string dimension;
};

struct Manifest {
  std::string model_name, architecture, target_name;
  std::string engine;                          // the version of TVM that compiled the module
  std::vector<std::string> required_features;  // of the processor
  std::string device_kind;                     // "cuda"; empty for modules that run on the processor
  int compute_capability = 0;                  // of that device, at least: 10 major + minor
  bool device_is_simulated = false;            // there is no machine code for one
  std::vector<Description> inputs, outputs, parameter_descriptions, reference_input_descriptions, reference_output_descriptions;
  std::vector<Description> asset_descriptions;  // files beside the numbers, as a tokenizer
  std::vector<State> states;
  std::optional<Position> position;
  std::vector<Description> initial_state_descriptions;
  Sizes reference_sizes;     // of dimensions of the states, in the stored example
  std::string state_format;  // equal for modules that can take over each other's states
  std::vector<Requirement> requirements;
  std::vector<IndexRequirement> indices;
  int threads = 0;                // 0: no setting
  size_t compact_parameters = 0;  // how many of the last ones the module's code expands when it is loaded
  double relative_tolerance = 1e-3, absolute_tolerance = 1e-4;
  // The model's nodes that each call of a kernel in the code computes, the main one first, by the kernel's name.
  std::map<std::string, std::vector<std::vector<std::string>>> kernel_nodes;
  std::map<std::string, std::string> checksums;  // of the sections, in hexadecimal

  // Throws Error for anything but a manifest whose every field is known and valid.
  void Parse(const char* text, size_t size, const std::string& document);

  // The symbolic dimension of the position that no other input has, which is the number of rows in use; empty for none.
  std::string CountingDimension() const;

  // True if a session provides this input itself.
  bool IsOfSession(size_t input) const;
};

}  // namespace tensorwright
