#include "speech.h"

#include <algorithm>
#include <cstdio>
#include <optional>

#include "report.h"
#include "session.h"

namespace tensorwright {
namespace {

// Runs windows of samples, and returns the probability of speech.
class Windows {
 public:
  Windows(Module* module, int64_t length) : module_(module) {
    const Artifact& artifact = module->artifact();
    if (!artifact.states.empty()) session_.emplace(module, 0);
    const Description* input = nullptr;
    if (session_ && session_->inputs().size() == 1) input = &artifact.inputs[session_->inputs()[0]];
    if (!session_ && artifact.inputs.size() == 1) input = &artifact.inputs[0];
    bool fits = input && input->dtype.code == kDLFloat && input->dtype.bits == 32 && !input->shape.empty() && input->shape.size() <= 2 && input->shape.back() == length;
    if (!fits) throw Error("the module does not read windows of " + std::to_string(length) + " samples alone", "compile it with --shape, --constant for its other inputs, and --state");
    shape_.assign(input->shape.size() - 1, 1);
    shape_.push_back(length);
  }

  float Run(const float* samples) {
    ffi::Tensor input = NewTensor(shape_, DLDataType{kDLFloat, 32, 1});
    std::copy(samples, samples + shape_.back(), static_cast<float*>(input.data_ptr()));
    std::vector<ffi::Tensor> outputs = session_ ? session_->Run({input}) : module_->Run({input});
    DLDataType dtype = outputs.empty() ? DLDataType{} : outputs[0].dtype();
    size_t bytes = outputs.empty() ? 0 : TensorBytes(*outputs[0].GetDLTensorPtr());
    if (dtype.code != kDLFloat || dtype.bits != 32 || !bytes) throw Error("the module's first output is not a probability in float32");
    return static_cast<const float*>(outputs[0].data_ptr())[bytes / sizeof(float) - 1];
  }

 private:
  Module* module_;
  std::optional<Session> session_;
  std::vector<int64_t> shape_;
};

}  // namespace

SpeechParts FindSpeech(Module* module, const Processing& processing, const std::vector<float>& samples) {
  auto window = static_cast<size_t>(processing.window), context = static_cast<size_t>(processing.context);
  size_t count = (samples.size() + window - 1) / window;
  std::vector<float> padded(context + count * window);
  std::copy(samples.begin(), samples.end(), padded.begin() + static_cast<ptrdiff_t>(context));
  Windows windows(module, processing.context + processing.window);
  double seconds = static_cast<double>(window) / static_cast<double>(processing.rate);
  std::string lines, list;
  size_t parts = 0, start = 0;
  bool speaks = false;
  for (size_t i = 0; i <= count; ++i) {
    bool now = i < count && windows.Run(padded.data() + i * window) >= static_cast<float>(processing.score);
    if (now && !speaks) start = i;
    if (speaks && !now) {
      double from = static_cast<double>(start) * seconds, to = static_cast<double>(i) * seconds;
      char line[96];
      std::snprintf(line, sizeof line, "\n%8.2f s to %8.2f s", from, to);
      lines += line;
      list += (parts++ ? ", " : "") + ("{\"start\": " + Number(from)) + ", \"end\": " + Number(to) + "}";
    }
    speaks = now;
  }
  return {"speech in " + std::to_string(parts) + (parts == 1 ? " part" : " parts") + lines, "\"segments\": [" + list + "], \"window\": " + Number(seconds)};
}

}  // namespace tensorwright
