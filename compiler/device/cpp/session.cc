#include "session.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "checked_json.h"
#include "sha256.h"

namespace tensorwright {
namespace {

constexpr char kStatesMagic[] = {'T', 'W', 'S', 'T', 'A', 'T', 'E', '1'};
constexpr size_t kStatesHead = sizeof kStatesMagic + sizeof(uint64_t);
constexpr int64_t kMaxRows = int64_t{1} << 48;

std::vector<int64_t> SizesOf(const ffi::Tensor& tensor) { return {tensor.shape().begin(), tensor.shape().end()}; }

// Symbolic dimensions in a size.
std::vector<std::string> SymbolsOf(const std::string& dimension) {
  if (dimension.empty()) return {};
  try {
    return Formula(dimension).Names();
  } catch (const FormulaError&) {
    return {dimension};
  }
}

// Copies the first `count` rows along an axis from one tensor to another, which may have a different number of rows.
void CopyRows(const ffi::Tensor& from, const ffi::Tensor& to, size_t axis, int64_t count) {
  std::vector<int64_t> shape = SizesOf(from);
  size_t outer = 1, inner = TensorBytes(shape.data() + axis + 1, shape.size() - axis - 1, from.dtype());
  for (size_t i = 0; i < axis; ++i) outer *= static_cast<size_t>(shape[i]);
  size_t source = static_cast<size_t>(shape[axis]) * inner, target = static_cast<size_t>(to.shape()[axis]) * inner;
  for (size_t i = 0; i < outer && inner && count; ++i) {
    std::memcpy(static_cast<char*>(to.data_ptr()) + i * target, static_cast<const char*>(from.data_ptr()) + i * source, static_cast<size_t>(count) * inner);
  }
}

ffi::Tensor FirstRows(const ffi::Tensor& tensor, size_t axis, int64_t count) {
  std::vector<int64_t> shape = SizesOf(tensor);
  shape[axis] = count;
  ffi::Tensor rows = NewTensor(shape, tensor.dtype());
  CopyRows(tensor, rows, axis, count);
  return rows;
}

}  // namespace

Session::Session(Module* module, int64_t capacity) : module_(module), capacity_(capacity) {
  if (artifact().states.empty()) throw Error("the module has no states", "run it without a session");
  if (capacity < 0 || capacity > kMaxRows) throw Error("a capacity of " + std::to_string(capacity) + " rows");
  std::set<size_t> updated;
  for (const State& state : artifact().states) updated.insert(state.output);
  for (size_t i = 0; i < artifact().inputs.size(); ++i) {
    if (!artifact().IsOfSession(i)) inputs_.push_back(i);
  }
  for (size_t i = 0; i < artifact().outputs.size(); ++i) {
    if (!updated.count(i)) outputs_.push_back(i);
  }
  std::set<std::string> told;
  for (size_t i : inputs_) told.insert(artifact().inputs[i].dimensions.begin(), artifact().inputs[i].dimensions.end());
  for (const State& state : artifact().states) {
    const Description& input = artifact().inputs[state.input];
    if (!state.axis || state.grows) continue;
    const std::string& dimension = input.dimensions[*state.axis];
    int64_t fixed = input.shape[*state.axis];
    if (capacity && dimension.empty() && fixed != capacity) {
      throw Error("the module was compiled for a capacity of " + std::to_string(fixed) + ", not " + std::to_string(capacity));
    }
    if (capacity && !dimension.empty()) sizes_[dimension] = capacity;
    if (!capacity && !dimension.empty() && !told.count(dimension)) {
      throw Error("the states have a dynamic size " + Quoted(dimension) + " that must be given", "open the session with a capacity");
    }
  }
}

bool Session::HasRows(const State& state) const { return state.axis && (state.grows || artifact().position); }

// 0: no limit.
int64_t Session::Capacity(const Sizes& sizes) const {
  int64_t least = 0;
  for (const State& state : artifact().states) {
    if (!HasRows(state) || state.grows) continue;
    const Description& input = artifact().inputs[state.input];
    auto found = sizes.find(input.dimensions[*state.axis]);
    int64_t size = input.dimensions[*state.axis].empty() ? input.shape[*state.axis] : found == sizes.end() ? 0 : found->second;
    least = least ? std::min(least, size) : size;
  }
  return least ? least : capacity_;
}

Sizes Session::Told(const std::vector<ffi::Tensor>& inputs) const {
  Sizes told;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const Description& input = artifact().inputs[inputs_[i]];
    if (input.shape.size() != inputs[i].shape().size()) continue;  // the check of the run reports it
    for (size_t axis = 0; axis < input.shape.size(); ++axis) {
      if (!input.dimensions[axis].empty()) told[input.dimensions[axis]] = inputs[i].shape()[axis];
    }
  }
  return told;
}

// The sizes of the states. Throws Error if one is missing.
Sizes Session::StateSizes(const Sizes& sizes, const std::string& what) const {
  Sizes found;
  for (const State& state : artifact().states) {
    const Description& input = artifact().inputs[state.input];
    for (size_t i = 0; i < input.dimensions.size(); ++i) {
      if (state.grows && i == *state.axis) continue;
      for (const std::string& name : SymbolsOf(input.dimensions[i])) {
        auto size = sizes.find(name);
        if (size == sizes.end()) throw Error(what + " do not determine the size " + Quoted(name) + " of the states");
        found.insert(*size);
      }
    }
  }
  return found;
}

int64_t Session::LengthAfter(const Sizes& told) const {
  if (artifact().position) {
    const Position& position = *artifact().position;
    auto rows = told.find(position.dimension);
    return length_ + (position.dimension.empty() ? position.rows : rows == told.end() ? 0 : rows->second);
  }
  for (const State& state : artifact().states) {
    if (!state.grows) continue;
    Sizes sizes = told;
    sizes[artifact().inputs[state.input].dimensions[*state.axis]] = length_;
    try {
      return Formula(artifact().outputs[state.output].dimensions[*state.axis]).Value(sizes);
    } catch (const FormulaError&) {
      return length_;  // known after the run
    }
  }
  return length_;
}

void Session::Allocate(const Sizes& sizes) {
  Sizes all = sizes_ = StateSizes(sizes, "the inputs");
  for (const State& state : artifact().states) {
    if (state.grows) all[artifact().inputs[state.input].dimensions[*state.axis]] = 0;
  }
  for (const State& state : artifact().states) states_.insert_or_assign(state.input, module_->Placed(module_->FirstValue(state.input, all)));
}

std::vector<ffi::Tensor> Session::Run(const std::vector<ffi::Tensor>& inputs) {
  if (inputs.size() != inputs_.size()) {
    throw Error("expected " + std::to_string(inputs_.size()) + (inputs_.size() == 1 ? " input" : " inputs") + ", got " + std::to_string(inputs.size()));
  }
  Sizes told = Told(inputs), sizes = told;
  for (const auto& [name, size] : sizes_) sizes[name] = size;
  if (states_.empty()) Allocate(sizes);
  int64_t length = LengthAfter(told), capacity = Capacity(sizes_);
  if (capacity && length > capacity) {
    throw Error("the session is full: " + std::to_string(length_) + " of " + std::to_string(capacity) + " rows are in use, and this run adds " +
                    std::to_string(length - length_),
                "open it with a larger capacity, or rewind or reset it");
  }
  std::vector<ffi::Tensor> all(artifact().inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) all[inputs_[i]] = inputs[i];
  for (const auto& [place, tensor] : states_) all[place] = tensor;
  if (artifact().position) {
    size_t place = artifact().position->input;
    sizes[artifact().CountingDimension()] = length_;
    all[place] = module_->FirstValue(place, sizes);
    std::fill_n(static_cast<int64_t*>(all[place].data_ptr()), all[place].numel(), length_);
  }
  std::vector<ffi::Tensor> results = module_->Step(all), given;
  for (const State& state : artifact().states) {
    if (!state.grows) continue;
    states_.insert_or_assign(state.input, results[state.output]);
    length = results[state.output].shape()[*state.axis];
  }
  length_ = length;
  for (size_t i : outputs_) given.push_back(results[i]);
  return module_->ToHost(given);
}

void Session::Reset() {
  length_ = 0;
  states_.clear();
}

void Session::Rewind(int64_t count) {
  for (const State& state : artifact().states) {
    if (!HasRows(state)) throw Error("the session cannot be rewound: state " + Quoted(state.name) + " is replaced by each run");
  }
  if (count < 0 || count > length_) {
    throw Error("cannot rewind by " + std::to_string(count) + ": the session has length " + std::to_string(length_));
  }
  length_ -= count;
  for (const State& state : artifact().states) {
    auto found = states_.find(state.input);
    if (!state.grows || found == states_.end()) continue;
    found->second = module_->Placed(FirstRows(module_->ToHost({found->second})[0], *state.axis, length_));
  }
}

Session Session::Fork() const {
  Session other = *this;
  for (auto& [place, tensor] : other.states_) tensor = module_->Placed(Module::Copy(module_->ToHost({tensor})[0]));
  return other;
}

std::string Session::Save() const {
  std::vector<Description> descriptions;
  std::vector<ffi::Tensor> tensors;
  for (const State& state : artifact().states) {
    auto found = states_.find(state.input);
    if (found == states_.end()) continue;
    descriptions.push_back(artifact().inputs[state.input]);
    ffi::Tensor tensor = module_->ToHost({found->second})[0];
    tensors.push_back(HasRows(state) ? FirstRows(tensor, *state.axis, length_) : tensor);
  }
  std::string sizes;
  for (const auto& [name, size] : sizes_) sizes += (sizes.empty() ? "" : ",") + JsonText(name) + ":" + std::to_string(size);
  std::string header = "{\"module\":" + JsonText(artifact().state_format) + ",\"length\":" + std::to_string(length_) + ",\"sizes\":{" + sizes +
                       "},\"empty\":" + (tensors.empty() ? "true" : "false") + "}";
  uint64_t bytes = header.size();
  std::string file(kStatesMagic, sizeof kStatesMagic);
  file.append(reinterpret_cast<const char*>(&bytes), sizeof bytes);
  file += header + WriteTensors(descriptions, tensors);
  Sha256 sha;
  sha.Update(reinterpret_cast<const uint8_t*>(file.data()), file.size());
  Digest digest = sha.Finish();
  return file.append(reinterpret_cast<const char*>(digest.data()), digest.size());
}

void Session::Load(Span file, const std::string& origin) {
  Digest expected;
  if (file.size < kStatesHead + expected.size() || std::memcmp(file.data, kStatesMagic, sizeof kStatesMagic) != 0) {
    throw Error(origin + " is not a file of a session's states");
  }
  size_t content = file.size - expected.size();
  Sha256 sha;
  sha.Update(file.data, content);
  expected = sha.Finish();
  if (std::memcmp(file.data + content, expected.data(), expected.size()) != 0) throw Error(origin + " is damaged: its checksum does not match");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data + sizeof kStatesMagic, sizeof header_bytes);
  if (header_bytes > content - kStatesHead) throw Error(origin + " is damaged: its header is not valid");
  JsonValue header = JsonValue::Parse(reinterpret_cast<const char*>(file.data) + kStatesHead, static_cast<size_t>(header_bytes), origin + ": its header");
  header.OnlyKeys({"module", "length", "sizes", "empty"});
  if (header["module"].Text() != artifact().state_format) throw Error(origin + " was written by a session of another module");
  int64_t length = header["length"].Whole(0, kMaxRows);
  if (header["empty"].Truth()) return Reset();
  Sizes saved, sizes;
  for (const auto& [name, size] : header["sizes"].Members()) saved[name] = size.Whole(0, kMaxRows);
  saved = StateSizes(saved, origin + ": its sizes");
  sizes = saved;
  for (const auto& [name, size] : sizes_) sizes[name] = size;
  int64_t capacity = Capacity(sizes);
  if (capacity && length > capacity) {
    throw Error(origin + " holds " + std::to_string(length) + " rows, but the session has a capacity of " + std::to_string(capacity));
  }
  std::vector<Description> descriptions;
  for (const State& state : artifact().states) {
    Description description = artifact().inputs[state.input];
    Sizes known = saved;
    if (state.grows) known[description.dimensions[*state.axis]] = length;
    for (size_t i = 0; i < description.shape.size(); ++i) {
      if (HasRows(state) && i == *state.axis) description.shape[i] = length;
      else if (description.shape[i] < 0) description.shape[i] = Formula(description.dimensions[i]).Value(known);
    }
    descriptions.push_back(std::move(description));
  }
  size_t start = kStatesHead + static_cast<size_t>(header_bytes);
  std::vector<NamedTensor> tensors = ReadTensors({file.data + start, content - start}, descriptions, origin);
  Allocate(sizes);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const State& state = artifact().states[i];
    ffi::Tensor tensor = Module::Copy(tensors[i].tensor);
    if (HasRows(state) && !state.grows) {
      ffi::Tensor whole = Module::Copy(module_->ToHost({states_.at(state.input)})[0]);
      CopyRows(tensor, whole, *state.axis, length);
      tensor = whole;
    }
    states_.insert_or_assign(state.input, module_->Placed(tensor));
  }
  length_ = length;
}

}  // namespace tensorwright
