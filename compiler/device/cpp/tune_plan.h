// A tuning pack: kernels with their candidate configs, and the measurements so far.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "manifest.h"

namespace tensorwright {

struct TuneArgument {
  Description description;
  bool is_output = false;   // written by the kernel
  bool is_compared = false;  // for outputs: a result, not a buffer between launches
  double tolerance = 0;      // relative to a result's largest value; 0: results must be equal
};

struct TuneTask {
  std::string name, library;         // its file in the pack
  std::vector<TuneArgument> arguments;
  std::vector<std::string> symbols;  // the candidates' functions; the first is the rule's default
};

struct TunePlan {
  std::string folder, digest, header;  // the header is copied into the results
  Manifest target;                     // the device they are for
  std::vector<TuneTask> tasks;

  // Reads `folder`/plan.json. Throws Error.
  explicit TunePlan(const std::string& folder);
};

// One measurement. `compared`: made alternately with the default and the other leaders.
struct TuneResult {
  size_t task = 0, candidate = 0;
  bool compared = false;
  std::string status;           // "ok", "wrong-numbers", "run-error", "crash" or "timeout"
  std::vector<double> seconds;  // of one call each
  std::string note;
  int64_t unix_time = 0;

  double Median() const;
};

// The results, in a file that is replaced atomically whenever one is added.
class TuneResults {
 public:
  // Reads existing results. Throws Error if they belong to another pack.
  TuneResults(std::string path, const TunePlan& plan);

  const std::vector<TuneResult>& all() const { return results_; }
  bool Has(size_t task, size_t candidate, bool compared) const;
  // Candidates with correct results, by time: at most `count`, and always the default.
  std::vector<size_t> Leaders(size_t task, size_t count) const;
  // Adds a result, and writes the file. Throws Error if it cannot be written.
  void Add(const TuneResult& result, const std::string& device);
  void Note(const TuneResult& result) { results_.push_back(result); }

 private:
  void Write(const std::string& device) const;

  std::string path_, digest_, header_;
  std::vector<TuneResult> results_;
};

}  // namespace tensorwright
