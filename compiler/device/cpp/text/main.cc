// Generates a text with the linked language model:
//   model [-p TEXT] [--system TEXT] [--raw] [--max-new-tokens N] [--temperature T] [--top-k N] [--top-p P] [--min-p P]
//         [--repetition-penalty P] [--stop TEXT]... [--seed N] [--threads N] [--json] [--trusted-key PATH]...
//
// The prompt is read from standard input without -p. It is a message that the model answers, or, with --raw and for
// models without a chat template, a text that it continues. With any option that only the runner has, like --verify or
// --runs, the program acts as that runner (run.cc).
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>
#include <random>

#include "../checked_json.h"
#include "../linked.h"
#include "../run.h"
#include "../signature.h"
#include "generate.h"

extern "C" const uint8_t tensorwright_text_start[], tensorwright_text_end[];

namespace tensorwright {
namespace {

constexpr uint64_t kMaxTokens = uint64_t{1} << 31;
constexpr std::array<const char*, 10> kOfTheRunner = {"--verify",  "--runs",     "--inputs",      "--outputs",    "--graph",
                                                      "--kernels", "--session", "--load-states", "--save-states", "--capacity"};
const char* const kUsage =
    "usage: %s [-p TEXT] [--system TEXT] [--raw] [--max-new-tokens N] [--temperature T] [--top-k N] [--top-p P] [--min-p P] [--repetition-penalty P] "
    "[--stop TEXT]... [--seed N] [--threads N] [--json] [--trusted-key PATH]...\n"
    "Without -p the prompt is read from standard input. --verify and --runs N check and time the module.\n";

struct Options {
  std::optional<std::string> prompt, system;
  bool raw = false, json = false;
  int threads = 0;
  std::optional<uint64_t> seed;
  GenerationOptions generation;
  TrustedKeys trusted;
};

// A number from `least` to `most`.
double NumberOf(const std::string& name, const std::string& text, double least, double most) {
  char* end = nullptr;
  double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !std::isfinite(value) || value < least || value > most) {
    throw Error(name + " takes a number of at least " + std::to_string(least) + (most < 2 ? " and at most " + std::to_string(most) : "") + ", not " + Quoted(text));
  }
  return value;
}

uint64_t WholeOf(const std::string& name, const std::string& text, uint64_t most) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > most) {
    throw Error(name + " takes a whole number from 0 to " + std::to_string(most) + ", not " + Quoted(text));
  }
  return value;
}

// Parses an option with a value; false if there is no such option.
bool Take(const std::string& name, const std::string& value, Options* options) {
  SamplingOptions& sampling = options->generation.sampling;
  constexpr double kMax = 1e300;
  if (name == "-p" || name == "--prompt") options->prompt = value;
  else if (name == "--system") options->system = value;
  else if (name == "--max-new-tokens") options->generation.max_new_tokens = static_cast<size_t>(WholeOf(name, value, kMaxTokens));
  else if (name == "--temperature") sampling.temperature = NumberOf(name, value, 0, kMax);
  else if (name == "--top-k") sampling.top_k = WholeOf(name, value, kMaxTokens);
  else if (name == "--top-p") sampling.top_p = NumberOf(name, value, 1e-9, 1);
  else if (name == "--min-p") sampling.min_p = NumberOf(name, value, 0, 1);
  else if (name == "--repetition-penalty") sampling.repetition_penalty = NumberOf(name, value, 1e-9, kMax);
  else if (name == "--seed") options->seed = WholeOf(name, value, ~uint64_t{0});
  else if (name == "--threads") options->threads = static_cast<int>(WholeOf(name, value, static_cast<uint64_t>(kMaxThreads)));
  else if (name == "--trusted-key") options->trusted.Add(value);
  else if (name == "--stop" && !value.empty()) options->generation.stops.push_back(value);
  else return false;
  return true;
}

bool Parse(int count, char** arguments, Options* options) {
  for (int i = 1; i < count; ++i) {
    std::string name = arguments[i], value;
    if (name == "--raw" || name == "--json") {
      (name == "--raw" ? options->raw : options->json) = true;
      continue;
    }
    size_t equals = name.compare(0, 2, "--") == 0 ? name.find('=') : std::string::npos;
    if (equals != std::string::npos) value = name.substr(equals + 1), name.resize(equals);
    else if (i + 1 < count) value = arguments[++i];
    else return false;
    if (!Take(name, value, options)) return false;
  }
  return true;
}

std::string StandardInput() {
  std::string text;
  char buffer[4096];
  for (;;) {
    ssize_t count = read(STDIN_FILENO, buffer, sizeof buffer);
    if (count < 0 && errno != EINTR) throw Error(std::string("the prompt cannot be read from standard input: ") + std::strerror(errno));
    if (count == 0) return text;
    if (count > 0) text.append(buffer, static_cast<size_t>(count));
  }
}

void Write(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) throw Error("the text cannot be written");
}

std::string Rate(size_t count, double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", seconds > 0 ? static_cast<double>(count) / seconds : 0.0);
  return text;
}

std::string Json(const Generation& result, size_t prompt, std::optional<uint64_t> seed) {
  std::string tokens;
  for (int64_t token : result.tokens) tokens += (tokens.empty() ? "" : ",") + std::to_string(token);
  size_t decoded = result.tokens.empty() ? 0 : result.tokens.size() - 1;
  return "{\"text\":" + JsonText(result.text) + ",\"tokens\":[" + tokens + "],\"finish_reason\":\"" + result.finish_reason +
         "\",\"prompt_tokens\":" + std::to_string(prompt) + ",\"prompt_seconds\":" + std::to_string(result.prompt_seconds) +
         ",\"decode_seconds\":" + std::to_string(result.decode_seconds) + ",\"prompt_tokens_per_second\":" + Rate(prompt, result.prompt_seconds) +
         ",\"decode_tokens_per_second\":" + Rate(decoded, result.decode_seconds) + ",\"seed\":" + (seed ? std::to_string(*seed) : "null") + "}";
}

int Main(int count, char** arguments) {
  Options options;
  if (!Parse(count, arguments, &options)) {
    std::fprintf(stderr, kUsage, arguments[0]);
    return 2;
  }
  Language language({tensorwright_text_start, static_cast<size_t>(tensorwright_text_end - tensorwright_text_start)});
  std::string text = options.prompt ? *options.prompt : StandardInput();
  std::vector<std::string> messages;
  if (options.system) messages.push_back(*options.system);
  messages.push_back(text);
  bool templated = language.has_template() && !options.raw && !text.empty();
  std::vector<int64_t> prompt = templated ? language.MessagesOf(messages) : language.PromptOf(text);
  std::optional<uint64_t> seed;
  if (options.generation.sampling.temperature > 0) seed = options.seed ? *options.seed : uint64_t{std::random_device()()};
  options.generation.sampling.seed = seed.value_or(0);
  Module module(Artifact::FromMemory(LinkedModule(), "the linked module", &options.trusted));
  if (options.threads) module.SetThreads(options.threads);
  Generation result = Generate(&module, language, prompt, options.generation, [&](const std::string& piece) {
    if (!options.json) Write(piece);
  });
  if (options.json) {
    Write(Json(result, prompt.size(), seed) + "\n");
    return 0;
  }
  Write("\n");
  size_t decoded = result.tokens.empty() ? 0 : result.tokens.size() - 1;
  std::fprintf(stderr, "%zu tokens of prompt at %s/s, %zu tokens at %s/s, ended by %s\n", prompt.size(), Rate(prompt.size(), result.prompt_seconds).c_str(),
               result.tokens.size(), Rate(decoded, result.decode_seconds).c_str(), result.finish_reason.c_str());
  return 0;
}

bool IsOfTheRunner(const std::string& argument) {
  return std::any_of(kOfTheRunner.begin(), kOfTheRunner.end(), [&](const char* name) { return argument == name; });
}

}  // namespace
}  // namespace tensorwright

int main(int count, char** arguments) {
  bool runs = std::any_of(arguments + 1, arguments + count, [](const char* each) { return tensorwright::IsOfTheRunner(each); });
  return tensorwright::Guarded([&] { return runs ? tensorwright::RunnerMain(count, arguments) : tensorwright::Main(count, arguments); });
}
