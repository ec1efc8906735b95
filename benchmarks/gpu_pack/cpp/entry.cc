#include "entry.h"

#include <unistd.h>

#include <cstring>

#include "generator.h"

namespace tensorwright::pack {
namespace {

constexpr int64_t kMaxSamples = 1 << 24;

// References, in the order in which their numbers lie in `numbers`, of which `used` are read.
class References {
 public:
  References(const std::string& bytes, std::string path) : numbers_(bytes.size() / sizeof(double)), path_(std::move(path)) {
    std::memcpy(numbers_.data(), bytes.data(), numbers_.size() * sizeof(double));
  }

  Reference Next(const JsonValue& described) {
    Reference made{described["name"].Text(), Sizes(described["shape"]), described["samples"].Whole(0, kMaxSamples), {}};
    size_t samples = static_cast<size_t>(made.samples), length = Summary::kHead + samples;
    if (length > numbers_.size() - used_) throw Error(path_ + " is truncated", "copy the pack again");
    made.summary = Summary::Unpacked(numbers_.data() + used_, samples);
    used_ += length;
    return made;
  }

 private:
  std::vector<double> numbers_;
  std::string path_;
  size_t used_ = 0;
};

}  // namespace

std::string ReadCompressed(const std::string& path) {
  if (access(path.c_str(), R_OK) != 0) throw Error(path + " cannot be read: " + std::strerror(errno), "copy the pack again");
  std::string command = "gzip -dc '" + path + "'", content;
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) throw Error("gzip could not be started: " + std::string(std::strerror(errno)));
  char buffer[1 << 16];
  while (size_t count = fread(buffer, 1, sizeof buffer, pipe)) content.append(buffer, count);
  if (pclose(pipe) != 0) throw Error(path + " could not be unpacked by gzip", "copy the pack again, and see that gzip is on the PATH");
  return content;
}

Entry::Entry(const std::string& pack, const std::string& wanted) : name(wanted), folder(pack + "/entries/" + wanted) {
  std::string text = ReadCompressed(folder + "/entry.json.gz");
  JsonValue root = JsonValue::Parse(text.data(), text.size(), folder + "/entry.json");
  manifest.target_name = root["target"].Text();
  manifest.device_kind = "cuda";
  manifest.compute_capability = static_cast<int>(root["compute_capability"].Whole(0, 1000));
  if (root["simulated"].Whole(0, 1)) simulated = folder + "/kernels.so.gz";
  for (const JsonValue& each : root["parameters"].Items()) parameters.push_back(each);
  stored = ReadCompressed(folder + "/stored.bin.gz");
  References references(ReadCompressed(folder + "/references.bin.gz"), folder + "/references.bin.gz");
  for (const JsonValue& each : root["cases"].Items()) {
    Case made;
    for (const JsonValue& input : each["inputs"].Items()) made.inputs.push_back(input);
    for (const JsonValue& output : each["outputs"].Items()) made.outputs.push_back(references.Next(output));
    cases.push_back(std::move(made));
  }
  for (const auto& [kernel, value] : root["kernels"].Members()) {
    Kernel made{{}, value["operations"].Amount()};
    for (const JsonValue& place : value["results"].Items()) made.results.push_back(static_cast<size_t>(place.Whole(0, 1 << 20)));
    kernels.emplace(kernel, std::move(made));
  }
  for (const JsonValue& each : root["calls"].Items()) {
    Call made{each["kernel"].Text(), {}};
    for (const JsonValue& result : each["results"].Items()) made.results.push_back(references.Next(result));
    calls.push_back(std::move(made));
  }
  tolerance = Tolerance::Parse(root["tolerance"]), call_tolerance = Tolerance::Parse(root["call_tolerance"]);
}

}  // namespace tensorwright::pack
