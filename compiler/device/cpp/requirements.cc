#include "requirements.h"

#include <algorithm>
#include <set>
#include <type_traits>

namespace tensorwright {
namespace {

using Symbols = std::map<std::string, std::string>;
// The value of each symbolic dimension, and the first input that has it.
using Dimensions = std::map<std::string, std::pair<int64_t, const Description*>>;

void CheckFormula(const Formula& formula, const Symbols& symbols, const std::set<std::string>& dimensions) {
  for (const std::string& name : formula.Names()) {
    auto found = symbols.find(name);
    if (found != symbols.end() && dimensions.count(found->second)) continue;
    throw Error("the module's requirement " + Quoted(formula.text()) + " is not valid: " + Quoted(name) + " is not a dimension of an input",
                "compile the model again");
  }
}

std::string Given(const Symbols& symbols, const Sizes& sizes) {
  std::set<std::string> names;
  for (const auto& [name, dimension] : symbols) {
    if (sizes.count(dimension)) names.insert(dimension);
  }
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name + " = " + std::to_string(sizes.at(name));
  return "the inputs' sizes do not fit this model: " + text;
}

int64_t Value(const Formula& formula, const Symbols& symbols, const Sizes& sizes, const std::string& where) {
  Sizes named;
  for (const auto& [name, dimension] : symbols) {
    auto found = sizes.find(dimension);
    if (found != sizes.end()) named[name] = found->second;
  }
  try {
    return formula.Value(named);
  } catch (const FormulaError& error) {
    throw Error(where + ": " + error.what(), Given(symbols, sizes));
  }
}

// A formula and its value, or a single dimension's own name and its value.
std::string Term(const Formula& formula, int64_t value, const Symbols& symbols) {
  auto found = symbols.find(formula.text());
  std::string name = found == symbols.end() ? formula.text() : found->second;
  return name == std::to_string(value) ? name : name + " = " + std::to_string(value);
}

void CheckRelation(const Requirement& requirement, const Sizes& sizes) {
  int64_t left = Value(requirement.left, requirement.symbols, sizes, requirement.where);
  int64_t right = Value(requirement.right, requirement.symbols, sizes, requirement.where);
  std::string first = Term(requirement.left, left, requirement.symbols), second = Term(requirement.right, right, requirement.symbols);
  bool holds = left == right;
  std::string text = first + " must equal " + second;
  if (requirement.relation == Relation::kAtLeast) {
    holds = left >= right;
    text = first + " must be at least " + second;
  } else if (requirement.relation == Relation::kBroadcast) {
    holds = left == right || left == 1 || right == 1;
    text = first + " and " + second + " must be equal, or one of them must be 1";
  }
  if (!holds) throw Error(requirement.where + ": " + text, Given(requirement.symbols, sizes));
}

// Start of the message for an invalid shape.
std::string ShapeOf(const Description& input, const DLTensor& tensor) {
  return "input " + Quoted(input.name) + " has shape " + ShapeText(tensor.shape, static_cast<size_t>(tensor.ndim));
}

void CheckShape(const Description& input, const DLTensor& tensor, Dimensions* dimensions) {
  size_t rank = static_cast<size_t>(tensor.ndim);
  if (rank != input.shape.size()) {
    throw Error("input " + Quoted(input.name) + " has rank " + std::to_string(rank) + ", shape " + ShapeText(tensor.shape, rank) + "; expected rank " +
                    std::to_string(input.shape.size()),
                "the module takes " + input.Text());
  }
  for (size_t axis = 0; axis < rank; ++axis) {
    int64_t actual = tensor.shape[axis];
    const std::string& name = input.dimensions[axis];
    if (name.empty()) {
      if (actual == input.shape[axis]) continue;
      throw Error(ShapeOf(input, tensor) + ": dimension " + std::to_string(axis) + " is " + std::to_string(actual) + " and must be " +
                      std::to_string(input.shape[axis]),
                  "the module takes " + input.Text());
    }
    auto [value, source] = dimensions->emplace(name, std::pair(actual, &input)).first->second;
    if (actual == value) continue;
    std::string place = source == &input ? "an earlier dimension of this input" : "input " + Quoted(source->name);
    throw Error(ShapeOf(input, tensor) + ": dimension " + std::to_string(axis) + " (" + name + ") is " + std::to_string(actual) + ", but " + place +
                " has " + name + " = " + std::to_string(value));
  }
}

void CheckType(const Description& input, const DLTensor& tensor) {
  if (tensor.dtype.code != input.dtype.code || tensor.dtype.bits != input.dtype.bits || tensor.dtype.lanes != input.dtype.lanes) {
    throw Error("input " + Quoted(input.name) + " has element type " + std::string(ffi::DLDataTypeToString(tensor.dtype)) + "; the module takes " +
                input.Text());
  }
}

void CheckTruthValues(const Description& input, const ffi::Tensor& tensor) {
  if (input.dtype.code != kDLBool || tensor.device().device_type != kDLCPU) return;
  if (AreTruthValues(static_cast<const uint8_t*>(tensor.data_ptr()), static_cast<size_t>(tensor.numel()))) return;
  throw Error("input " + Quoted(input.name) + " has boolean values other than 0 and 1");
}

// (lowest value, the one after the highest)
std::pair<int64_t, int64_t> RangeOf(const IndexRequirement& index, const Sizes& sizes) {
  int64_t high = Value(index.size, index.symbols, sizes, index.where);
  if (index.least) return {Value(*index.least, index.symbols, sizes, index.where), high};
  high = std::max<int64_t>(0, high);
  return {-high, high};
}

template <typename T>
bool IsBelow(T value, int64_t limit) {
  if constexpr (std::is_signed_v<T>) {
    return value < limit;
  } else {
    return limit > 0 && value < static_cast<uint64_t>(limit);
  }
}

template <typename T>
void CheckValues(const ffi::Tensor& tensor, std::pair<int64_t, int64_t> range, const IndexRequirement& index) {
  const T* first = static_cast<const T*>(tensor.data_ptr());
  if (tensor.numel() == 0) return;
  auto [least, largest] = std::minmax_element(first, first + tensor.numel());
  auto [low, high] = range;
  if (!IsBelow(*least, low) && IsBelow(*largest, high)) return;
  std::string wrong = std::to_string(IsBelow(*least, low) ? *least : *largest);
  throw Error(index.where + ": input " + Quoted(index.input) + " holds the " + (index.least ? "value " : "index ") + wrong + ", outside of [" +
                  std::to_string(low) + ", " + std::to_string(high) + ")",
              index.least ? "its elements are indices, lengths or counts" : "its elements index an axis of that size");
}

void CheckValues(const ffi::Tensor& tensor, std::pair<int64_t, int64_t> range, const IndexRequirement& index) {
  DLDataType dtype = tensor.dtype();
  bool is_signed = dtype.code == kDLInt;
  switch (dtype.bits) {
    case 8:
      return is_signed ? CheckValues<int8_t>(tensor, range, index) : CheckValues<uint8_t>(tensor, range, index);
    case 16:
      return is_signed ? CheckValues<int16_t>(tensor, range, index) : CheckValues<uint16_t>(tensor, range, index);
    case 32:
      return is_signed ? CheckValues<int32_t>(tensor, range, index) : CheckValues<uint32_t>(tensor, range, index);
    default:
      return is_signed ? CheckValues<int64_t>(tensor, range, index) : CheckValues<uint64_t>(tensor, range, index);
  }
}

bool HoldsIndices(const Description& input) {
  return !input.carried && (input.dtype.code == kDLInt || input.dtype.code == kDLUInt) && input.dtype.bits >= 8;
}

}  // namespace

InputChecker::InputChecker(const Manifest& manifest) : manifest_(manifest) {
  std::set<std::string> dimensions;
  for (const Description& input : manifest.inputs) {
    for (const std::string& dimension : input.dimensions) {
      if (!dimension.empty()) dimensions.insert(dimension);
    }
  }
  for (const Requirement& each : manifest.requirements) {
    CheckFormula(each.left, each.symbols, dimensions);
    CheckFormula(each.right, each.symbols, dimensions);
  }
  for (const IndexRequirement& each : manifest.indices) {
    CheckFormula(each.size, each.symbols, dimensions);
    if (each.least) CheckFormula(*each.least, each.symbols, dimensions);
    auto found = std::find_if(manifest.inputs.begin(), manifest.inputs.end(), [&](const Description& input) { return input.name == each.input; });
    if (found == manifest.inputs.end() || !HoldsIndices(*found)) {
      throw Error("the module's indices " + Quoted(each.input) + " are not an integer input", "compile the model again");
    }
    places_.push_back(static_cast<size_t>(found - manifest.inputs.begin()));
  }
}

void InputChecker::CheckRelations(const Sizes& sizes) const {
  for (const Requirement& each : manifest_.requirements) CheckRelation(each, sizes);
}

void InputChecker::Check(const std::vector<ffi::Tensor>& inputs) {
  const auto& wanted = manifest_.inputs;
  if (inputs.size() != wanted.size()) {
    std::string takes;
    for (const Description& each : wanted) takes += (takes.empty() ? "" : "; ") + each.Text();
    throw Error("expected " + std::to_string(wanted.size()) + (wanted.size() == 1 ? " input" : " inputs") + ", got " + std::to_string(inputs.size()),
                "the module takes " + (takes.empty() ? "no inputs" : takes));
  }
  Dimensions dimensions;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const DLTensor& tensor = *inputs[i].GetDLTensorPtr();
    CheckType(wanted[i], tensor);
    CheckShape(wanted[i], tensor, &dimensions);
    CheckTruthValues(wanted[i], inputs[i]);
  }
  Sizes sizes;
  for (const auto& [name, found] : dimensions) sizes[name] = found.first;
  if (!good_ || *good_ != sizes) {
    CheckRelations(sizes);
    ranges_.clear();
    for (const IndexRequirement& each : manifest_.indices) ranges_.push_back(RangeOf(each, sizes));
    good_ = sizes;
  }
  for (size_t i = 0; i < places_.size(); ++i) CheckValues(inputs[places_[i]], ranges_[i], manifest_.indices[i]);
}

}  // namespace tensorwright
