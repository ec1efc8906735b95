#include "embedder.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <optional>

#include "tokenizer.h"

namespace tensorwright {
namespace {

constexpr size_t kMaxTokens = 512;  // if the module accepts any number, as in the Python package
constexpr char kTokenizer[] = "tokenizer.bin";

bool IsOneOf(const std::string& name, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](const char* each) { return name == each; });
}

bool IsTokens(const Description& input) { return IsOneOf(input.name, {"input_ids", "ids", "tokens"}); }
bool IsMask(const Description& input) { return IsOneOf(input.name, {"attention_mask", "mask"}); }

Tokenizer TokenizerOf(const Artifact& artifact) {
  if (!artifact.asset_descriptions.empty()) {
    for (const NamedTensor& each : ReadTensors(artifact.assets, artifact.asset_descriptions, "the assets of the module")) {
      if (each.name != kTokenizer) continue;
      Reader reader({static_cast<const uint8_t*>(each.tensor.data_ptr()), TensorBytes(*each.tensor.GetDLTensorPtr())});
      return Tokenizer(&reader);
    }
  }
  throw Error("the module has no tokenizer for programs without Python", "compile it again with --task embed and its --tokenizer");
}

// An input with one row per text: `value` returns the element at each position below `length`.
template <typename Value>
ffi::Tensor Rows(const Description& input, int64_t batch, int64_t length, const Value& value) {
  if (input.dtype.code != kDLInt || (input.dtype.bits != 32 && input.dtype.bits != 64)) throw Error("the module's input " + Quoted(input.name) + " holds no integers of 32 or 64 bits");
  ffi::Tensor made = NewTensor({batch, length}, input.dtype);
  for (int64_t i = 0; i < batch * length; ++i) {
    if (input.dtype.bits == 32) static_cast<int32_t*>(made.data_ptr())[i] = static_cast<int32_t>(value(static_cast<size_t>(i % length)));
    else static_cast<int64_t*>(made.data_ptr())[i] = value(static_cast<size_t>(i % length));
  }
  return made;
}

// The mean of the first `count` rows of the first text, normalized to length 1.
std::vector<float> Pooled(const ffi::Tensor& output, int64_t count) {
  auto shape = output.shape();
  DLDataType dtype = output.dtype();
  bool fits = dtype.code == kDLFloat && dtype.bits == 32 && (shape.size() == 2 || shape.size() == 3) && shape[0] > 0;
  if (!fits || (shape.size() == 3 && shape[1] < count)) throw Error("the module's first output is not a vector in float32 for each text or token");
  if (shape.size() == 2) count = 1;
  auto size = static_cast<size_t>(shape[shape.size() - 1]);
  const float* data = static_cast<const float*>(output.data_ptr());
  std::vector<double> sum(size);
  for (int64_t row = 0; row < count; ++row) {
    for (size_t i = 0; i < size; ++i) sum[i] += *data++;
  }
  double length = 0;
  for (double& each : sum) each /= static_cast<double>(count), length += each * each;
  std::vector<float> vector(size);
  for (size_t i = 0; i < size; ++i) vector[i] = static_cast<float>(sum[i] / std::max(std::sqrt(length), 1e-12));
  return vector;
}

}  // namespace

std::vector<std::vector<float>> Embed(Module* module, const std::vector<std::string>& texts) {
  const Artifact& artifact = module->artifact();
  Tokenizer tokenizer = TokenizerOf(artifact);
  auto ids = std::find_if(artifact.inputs.begin(), artifact.inputs.end(), IsTokens);
  if (ids == artifact.inputs.end() || ids->shape.size() != 2) throw Error("the module maps no token ids to vectors");
  int64_t batch = std::max<int64_t>(ids->shape[0], 1), fixed = ids->shape[1];
  std::vector<std::vector<float>> vectors;
  for (const std::string& text : texts) {
    std::vector<int64_t> tokens = tokenizer.Encode(text, true, fixed > 0 ? static_cast<size_t>(fixed) : kMaxTokens);
    int64_t length = fixed > 0 ? fixed : static_cast<int64_t>(tokens.size());
    std::vector<ffi::Tensor> inputs;
    for (const Description& input : artifact.inputs) {
      inputs.push_back(Rows(input, batch, length, [&](size_t place) -> int64_t {
        if (place >= tokens.size()) return 0;
        return IsTokens(input) ? tokens[place] : IsMask(input);
      }));
    }
    vectors.push_back(Pooled(module->Run(inputs).at(0), static_cast<int64_t>(tokens.size())));
  }
  return vectors;
}

}  // namespace tensorwright
