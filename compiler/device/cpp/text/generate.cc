#include "generate.h"

#include <algorithm>
#include <chrono>

#include "../session.h"
#include "stream.h"

namespace tensorwright {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kRows = 64;  // a cache's capacity is a multiple of it

double Seconds(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// True if a session needs the number of rows of its states.
bool HasOpenCapacity(const Artifact& artifact) {
  return std::any_of(artifact.states.begin(), artifact.states.end(), [&](const State& state) {
    return state.axis && (state.grows || !artifact.inputs[state.input].dimensions[*state.axis].empty());
  });
}

int64_t CapacityOf(const Artifact& artifact, const Language& language, size_t tokens) {
  if (!HasOpenCapacity(artifact)) return 0;
  size_t wanted = std::min(tokens, language.context());
  return static_cast<int64_t>(std::min((wanted + kRows - 1) / kRows * kRows, language.context()));
}

// Reads tokens, and returns the logits of the next one.
ffi::Tensor Read(Session* session, const std::vector<int64_t>& tokens) {
  ffi::Tensor input = NewTensor({1, static_cast<int64_t>(tokens.size())}, DLDataType{kDLInt, 64, 1});
  std::copy(tokens.begin(), tokens.end(), static_cast<int64_t*>(input.data_ptr()));
  return session->Run({input})[0];
}

void CheckModule(const Artifact& artifact, const Session& session, const Language& language) {
  bool fits = session.inputs().size() == 1 && session.outputs().size() == 1;
  if (fits) {
    const Description &tokens = artifact.inputs[session.inputs()[0]], &logits = artifact.outputs[session.outputs()[0]];
    fits = tokens.dtype_name == "int64" && logits.dtype_name == "float32" && !logits.shape.empty() &&
           logits.shape.back() == static_cast<int64_t>(language.vocabulary());
  }
  if (!fits) throw Error("the module does not take tokens and give logits", "compile a language model");
}

}  // namespace

Generation Generate(Module* module, const Language& language, const std::vector<int64_t>& prompt, const GenerationOptions& options,
                    const std::function<void(const std::string&)>& stream) {
  if (prompt.empty()) throw Error("the prompt is empty", "give at least one token");
  if (prompt.size() > language.context()) {
    throw Error("the prompt has " + std::to_string(prompt.size()) + " tokens, which exceeds the context of " + std::to_string(language.context()),
                "give a shorter prompt");
  }
  size_t room = language.context() + 1 - prompt.size(), most = std::min(options.max_new_tokens, room);
  Session session(module, CapacityOf(module->artifact(), language, prompt.size() + std::min(options.max_new_tokens, language.context())));
  CheckModule(module->artifact(), session, language);
  Sampler sampler(options.sampling, prompt, language.suppressed());
  TextStream text([&](const std::vector<int64_t>& tokens) { return language.Decode(tokens); }, prompt);
  StopTexts stops(options.stops);
  Generation result;
  auto give = [&](const std::string& piece) {
    result.text += piece;
    if (!piece.empty()) stream(piece);
  };
  auto begin = Clock::now();
  while (result.tokens.size() < most && result.finish_reason.empty()) {
    ffi::Tensor logits = Read(&session, result.tokens.empty() ? prompt : std::vector<int64_t>{result.tokens.back()});
    const float* last = static_cast<const float*>(logits.data_ptr()) + logits.numel() - static_cast<int64_t>(language.vocabulary());
    int64_t token = sampler.Choose(last, language.vocabulary());
    if (result.tokens.empty()) result.prompt_seconds = Seconds(begin);
    if (language.Ends(token)) {
      result.finish_reason = "stop";
      break;
    }
    result.tokens.push_back(token);
    give(stops.Add(text.Add(token)));
    if (stops.found()) result.finish_reason = "stop";
  }
  result.decode_seconds = Seconds(begin) - result.prompt_seconds;
  if (result.finish_reason.empty()) result.finish_reason = "length";
  if (!stops.found()) give(stops.Add(text.End()) + stops.End());
  return result;
}

}  // namespace tensorwright
