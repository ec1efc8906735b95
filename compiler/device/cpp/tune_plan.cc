#include "tune_plan.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "checked_json.h"
#include "dtypes.h"
#include "file.h"
#include "module.h"

namespace tensorwright {
namespace {

constexpr int kPlanFormat = 1;

TuneArgument ReadArgument(const JsonValue& value) {
  TuneArgument argument;
  std::string name = value["dtype"].Text();
  const ElementType* type = FindElementType(name);
  if (!type) value.Fail("the element type " + Quoted(name) + " is not known");
  argument.description.dtype_name = name, argument.description.dtype = type->dtype;
  for (const JsonValue& size : value["shape"].Items(kMaxDimensions)) argument.description.shape.push_back(size.Whole(0, kMaxElements));
  argument.is_output = value["output"].Truth(), argument.is_compared = value["compared"].Truth(), argument.tolerance = value["tolerance"].Amount();
  return argument;
}

TuneTask ReadTask(const JsonValue& value) {
  TuneTask task;
  task.name = value["name"].Text(), task.library = value["library"].Text();
  if (task.library.find("..") != std::string::npos || task.library[0] == '/') value.Fail("its library is outside the pack");
  for (const JsonValue& each : value["arguments"].Items()) task.arguments.push_back(ReadArgument(each));
  for (const JsonValue& each : value["symbols"].Items()) task.symbols.push_back(each.Text());
  if (task.symbols.empty()) value.Fail("it has no candidates");
  return task;
}

std::string NumberText(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string ResultText(const TuneResult& result) {
  std::string seconds;
  for (double each : result.seconds) seconds += (seconds.empty() ? "" : ", ") + NumberText(each);
  return "{\"task\": " + std::to_string(result.task) + ", \"candidate\": " + std::to_string(result.candidate) + ", \"compared\": " + (result.compared ? "true" : "false") +
         ", \"status\": " + JsonText(result.status) + ", \"seconds\": [" + seconds + "], \"note\": " + JsonText(Shortened(result.note, 400)) +
         ", \"unix_time\": " + std::to_string(result.unix_time) + "}";
}

TuneResult ReadResult(const JsonValue& value, const TunePlan& plan) {
  TuneResult result;
  result.task = static_cast<size_t>(value["task"].Whole(0, static_cast<int64_t>(plan.tasks.size()) - 1));
  result.candidate = static_cast<size_t>(value["candidate"].Whole(0, static_cast<int64_t>(plan.tasks[result.task].symbols.size()) - 1));
  result.compared = value["compared"].Truth(), result.status = value["status"].Text(), result.note = value["note"].Text();
  for (const JsonValue& each : value["seconds"].Items()) result.seconds.push_back(each.Amount());
  result.unix_time = value["unix_time"].Whole(0, std::numeric_limits<int64_t>::max());
  return result;
}

}  // namespace

TunePlan::TunePlan(const std::string& path) : folder(path) {
  std::string name = path + "/plan.json";
  FileBytes file(name);
  JsonValue plan = JsonValue::Parse(reinterpret_cast<const char*>(file.span().data), file.span().size, name);
  plan["format"].Whole(kPlanFormat, kPlanFormat);
  digest = plan["digest"].Text(), header = plan["header"].Text(std::numeric_limits<size_t>::max());
  target.target_name = plan["target"].Text(), target.device_kind = "cuda";
  target.compute_capability = static_cast<int>(plan["compute_capability"].Whole(0, 10'000));
  for (const JsonValue& each : plan["tasks"].Items()) tasks.push_back(ReadTask(each));
}

double TuneResult::Median() const { return Percentile(seconds, 0.5); }

TuneResults::TuneResults(std::string path, const TunePlan& plan) : path_(std::move(path)), digest_(plan.digest), header_(plan.header) {
  if (access(path_.c_str(), F_OK) != 0) return;
  FileBytes file(path_);
  JsonValue found = JsonValue::Parse(reinterpret_cast<const char*>(file.span().data), file.span().size, path_);
  if (found["digest"].Text() != digest_) throw Error(path_ + " holds the results of another pack", "move it away, or name another file with --results");
  for (const JsonValue& each : found["results"].Items()) results_.push_back(ReadResult(each, plan));
}

bool TuneResults::Has(size_t task, size_t candidate, bool compared) const {
  return std::any_of(results_.begin(), results_.end(), [&](const TuneResult& each) { return each.task == task && each.candidate == candidate && each.compared == compared; });
}

std::vector<size_t> TuneResults::Leaders(size_t task, size_t count) const {
  std::vector<std::pair<double, size_t>> right;
  for (const TuneResult& each : results_) {
    if (each.task == task && !each.compared && each.status == "ok" && each.candidate) right.emplace_back(each.Median(), each.candidate);
  }
  std::sort(right.begin(), right.end());
  std::vector<size_t> leaders{0};
  for (size_t i = 0; i < std::min(count, right.size()); ++i) leaders.push_back(right[i].second);
  return leaders;
}

void TuneResults::Add(const TuneResult& result, const std::string& device) {
  Note(result);
  Write(device);
}

void TuneResults::Write(const std::string& device) const {
  std::string text = "{\"format\": 1, \"digest\": " + JsonText(digest_) + ", \"device\": " + JsonText(device) + ",\n \"header\": " + JsonText(header_) + ",\n \"results\": [";
  for (size_t i = 0; i < results_.size(); ++i) text += (i ? ",\n  " : "\n  ") + ResultText(results_[i]);
  text += "\n]}\n";
  std::string fresh = path_ + ".new";
  int file = open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  bool written = file >= 0 && write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  int problem = errno;
  if (file >= 0 && close(file) != 0 && written) written = false, problem = errno;
  if (written && std::rename(fresh.c_str(), path_.c_str()) == 0) return;
  if (written) problem = errno;
  unlink(fresh.c_str());
  throw Error(path_ + " cannot be written: " + std::strerror(problem), "free space there, or name another file with --results; what was written before is still there");
}

}  // namespace tensorwright
