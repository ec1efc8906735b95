#include "manifest.h"

#include <algorithm>
#include <limits>
#include <set>

#include "checked_json.h"
#include "dtypes.h"

namespace tensorwright {
namespace {

constexpr int kDeepestBranch = 64;

void ReadDimension(const JsonValue& size, Description* description) {
  if (!size.IsText()) {
    description->shape.push_back(size.Whole(0, kMaxElements));
    description->dimensions.emplace_back();
    return;
  }
  description->shape.push_back(-1);
  description->dimensions.push_back(size.Text());
}

Description ReadDescription(const JsonValue& value) {
  Description description{value["name"].Text(), value["dtype"].Text(), {}, {}, {}, false};
  if (!FindElementType(description.dtype_name)) value["dtype"].Fail("unknown element type " + Quoted(description.dtype_name));
  std::string code_type = description.dtype_name;
  if (auto carrier = value.Find("carrier")) code_type = carrier->Text(), description.carried = true;
  description.dtype = FindElementType(code_type)->dtype;
  int64_t elements = 1;
  for (const JsonValue& size : value["shape"].Items()) {
    ReadDimension(size, &description);
    int64_t number = description.shape.back();
    if (number > 0 && (__builtin_mul_overflow(elements, number, &elements) || elements > kMaxElements)) {
      value["shape"].Fail("it has more than 2^60 elements");
    }
  }
  return description;
}

std::vector<Description> ReadDescriptions(const JsonValue& manifest, const char* key, bool stored) {
  std::vector<Description> result;
  std::set<std::string> names;
  auto values = manifest.Find(key);
  if (!values) return result;
  for (const JsonValue& item : values->Items()) {
    result.push_back(ReadDescription(item));
    if (!names.insert(result.back().name).second) item.Fail("two tensors have the name " + Quoted(result.back().name));
    for (const std::string& dimension : result.back().dimensions) {
      if (stored && !dimension.empty()) item.Fail("a stored tensor has a symbolic dimension");
    }
  }
  return result;
}

std::map<std::string, std::string> ReadTexts(const JsonValue& parent, const char* key) {
  std::map<std::string, std::string> result;
  if (auto values = parent.Find(key)) {
    for (const auto& [name, value] : values->Members()) result[name] = value.Text();
  }
  return result;
}

Formula ReadFormula(const JsonValue& value) {
  std::string text = value.Text();
  try {
    return Formula(text);
  } catch (const FormulaError& error) {
    throw Error("the module's requirement " + Quoted(text) + " is not valid: " + error.what(), "compile the model again");
  }
}

Relation ReadRelation(const JsonValue& value) {
  std::string name = value.Text();
  return name == "equal" ? Relation::kEqual : name == "at least" ? Relation::kAtLeast : Relation::kBroadcast;
}

void ReadRequirements(const JsonValue& manifest, Manifest* result) {
  if (auto all = manifest.Find("requirements")) {
    for (const JsonValue& each : all->Items()) {
      result->requirements.push_back({ReadFormula(each["left"]), ReadRelation(each["relation"]), ReadFormula(each["right"]),
                                      ReadTexts(each, "symbols"), each["where"].Text()});
    }
  }
  if (auto all = manifest.Find("indices")) {
    for (const JsonValue& each : all->Items()) {
      auto least = each.Find("least");
      result->indices.push_back({each["input"].Text(), ReadFormula(each["size"]), least ? std::optional(ReadFormula(*least)) : std::nullopt,
                                 ReadTexts(each, "symbols"), each["where"].Text()});
    }
  }
}

size_t PlaceOf(const JsonValue& name, const std::vector<Description>& all) {
  std::string text = name.Text();
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].name == text) return i;
  }
  name.Fail("no tensor is named " + Quoted(text));
}

void ReadStates(const JsonValue& manifest, Manifest* result) {
  if (auto all = manifest.Find("states")) {
    for (const JsonValue& each : all->Items()) {
      State state{each["name"].Text(), PlaceOf(each["input"], result->inputs), PlaceOf(each["output"], result->outputs), std::nullopt, false};
      const Description &given = result->inputs[state.input], &next = result->outputs[state.output];
      if (auto axis = each.Find("axis")) state.axis = static_cast<size_t>(axis->Whole(0, static_cast<int64_t>(given.shape.size()) - 1));
      if (auto grows = each.Find("grows")) state.grows = grows->Truth();
      if (state.grows && (!state.axis || given.dimensions[*state.axis].empty())) each.Fail("it has no axis to grow along");
      bool same = given.shape.size() == next.shape.size() && given.dtype_name == next.dtype_name;
      for (size_t i = 0; same && i < given.shape.size(); ++i) {
        same = (given.shape[i] == next.shape[i] && given.dimensions[i] == next.dimensions[i]) || (state.grows && i == *state.axis);
      }
      if (!same) each.Fail("its input and output differ in shape or element type");
      for (const State& other : result->states) {
        bool repeats = other.name == state.name || other.input == state.input || other.output == state.output;
        if (repeats) each.Fail("two states have the same name, input or output");
      }
      result->states.push_back(std::move(state));
    }
  }
  if (auto position = manifest.Find("position")) {
    JsonValue rows = (*position)["rows"];
    Position read{PlaceOf((*position)["input"], result->inputs), 0, ""};
    if (rows.IsText()) read.dimension = rows.Text();
    else read.rows = rows.Whole(0, kMaxElements);
    const Description& input = result->inputs[read.input];
    if (input.dtype_name != "int64" || input.shape.size() > 1 || result->IsOfSession(read.input)) position->Fail("it is not an integer input");
    bool known = read.dimension.empty() && !rows.IsText();
    for (const Description& each : result->inputs) {
      known = known || std::find(each.dimensions.begin(), each.dimensions.end(), read.dimension) != each.dimensions.end();
    }
    if (!known) rows.Fail("it is not a dimension of an input");
    result->position = std::move(read);
  }
  result->initial_state_descriptions = ReadDescriptions(manifest, "initial_states", true);
  for (const Description& each : result->initial_state_descriptions) {
    bool known = false;
    for (const State& state : result->states) {
      const Description& input = result->inputs[state.input];
      known = known || (input.name == each.name && input.shape == each.shape && input.dtype_name == each.dtype_name);
    }
    if (!known) manifest["initial_states"].Fail(Quoted(each.name) + " is not a state of that shape and element type");
  }
  if (auto sizes = manifest.Find("reference_sizes")) {
    for (const auto& [name, value] : sizes->Members()) result->reference_sizes[name] = value.Whole(0, std::numeric_limits<int64_t>::max());
  }
  if (auto format = manifest.Find("state_format")) result->state_format = format->Text();
}

// A step is a call, [callee, node, ...], or the steps of the branches of a condition.
void ReadSteps(const JsonValue& steps, const std::vector<std::string>& callees, const std::vector<std::string>& nodes, Manifest* result, int depth = 0) {
  if (depth > kDeepestBranch) steps.Fail("branches are nested too deeply");
  for (const JsonValue& step : steps.Items()) {
    std::vector<JsonValue> items = step.Items();
    if (items.empty()) step.Fail("a step must be a call or branches");
    if (items[0].IsList()) {
      if (items.size() != 2) step.Fail("a condition must have two branches");
      for (const JsonValue& branch : items) ReadSteps(branch, callees, nodes, result, depth + 1);
      continue;
    }
    std::vector<std::string> computed;
    for (size_t i = 1; i < items.size(); ++i) computed.push_back(nodes[items[i].Whole(0, static_cast<int64_t>(nodes.size()) - 1)]);
    result->kernel_nodes[callees[items[0].Whole(0, static_cast<int64_t>(callees.size()) - 1)]].push_back(std::move(computed));
  }
}

void ReadCalls(const JsonValue& calls, Manifest* result) {
  std::vector<std::string> nodes, callees;
  for (const JsonValue& each : calls["nodes"].Items()) nodes.push_back(each.Text());
  for (const JsonValue& each : calls["callees"].Items()) callees.push_back(each.Text());
  for (const auto& [name, steps] : calls["functions"].Members()) ReadSteps(steps, callees, nodes, result);
}

// The details belong to the target; only the device matters here.
void ReadDevice(const JsonValue& details, Manifest* manifest) {
  auto device = details.Find("device");
  if (!device) return;
  device->Check(kDeviceSchema);
  manifest->device_kind = (*device)["kind"].Text();
  if (auto capability = device->Find("compute_capability")) manifest->compute_capability = static_cast<int>(capability->Whole(0, 10'000));
  if (auto simulated = device->Find("simulated")) manifest->device_is_simulated = simulated->Truth();
}

}  // namespace

std::string Description::Text() const {
  std::string text;
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + (dimensions[i].empty() ? std::to_string(shape[i]) : dimensions[i]);
  }
  return name + ": " + dtype_name + "[" + text + "]";
}

std::string Manifest::CountingDimension() const {
  if (!position || inputs[position->input].dimensions.empty()) return "";
  const std::string& own = inputs[position->input].dimensions[0];
  for (size_t i = 0; i < inputs.size(); ++i) {
    const auto& others = inputs[i].dimensions;
    if (i != position->input && std::find(others.begin(), others.end(), own) != others.end()) return "";
  }
  return own;
}

bool Manifest::IsOfSession(size_t input) const {
  if (position && position->input == input) return true;
  for (const State& state : states) {
    if (state.input == input) return true;
  }
  return false;
}

void Manifest::Parse(const char* text, size_t size, const std::string& document) {
  JsonValue manifest = JsonValue::Parse(text, size, document);
  manifest.Check(kManifestSchema);
  model_name = manifest["model_name"].Text();
  JsonValue target = manifest["target"], versions = manifest["versions"];
  architecture = target["architecture"].Text(), target_name = target["name"].Text();
  if (auto features = target.Find("required_cpu_features")) {
    for (const JsonValue& feature : features->Items()) required_features.push_back(feature.Text());
  }
  if (auto details = target.Find("details")) ReadDevice(*details, this);
  tvm_version = versions["tvm"].Text();
  inputs = ReadDescriptions(manifest, "inputs", false), outputs = ReadDescriptions(manifest, "outputs", false);
  parameter_descriptions = ReadDescriptions(manifest, "parameters", true);
  reference_input_descriptions = ReadDescriptions(manifest, "reference_inputs", true);
  reference_output_descriptions = ReadDescriptions(manifest, "reference_outputs", true);
  if (auto fixed = manifest.Find("fixed_inputs")) {
    for (const JsonValue& each : fixed->Items()) ReadDescription(each["tensor"]);
  }
  asset_descriptions = ReadDescriptions(manifest, "assets", true);
  if (auto setting = manifest.Find("threads")) threads = static_cast<int>(setting->Whole(1, kMaxThreads));
  if (auto count = manifest.Find("compact_parameters")) {
    compact_parameters = static_cast<size_t>(count->Whole(0, static_cast<int64_t>(parameter_descriptions.size())));
  }
  ReadRequirements(manifest, this);
  ReadStates(manifest, this);
  if (auto calls = manifest.Find("calls")) ReadCalls(*calls, this);
  if (auto tolerance = manifest.Find("reference_tolerance")) {
    if (auto relative = tolerance->Find("relative")) relative_tolerance = relative->Amount();
    if (auto absolute = tolerance->Find("absolute")) absolute_tolerance = absolute->Amount();
  }
  checksums = ReadTexts(manifest, "checksums");
}

}  // namespace tensorwright
