// The file of results: a line of JSON for each thing that is known, written as soon as it is.
#pragma once

#include <set>
#include <string>

namespace tensorwright::pack {

class Results {
 public:
  // Opens the file, or makes it. A line that a cut run left unfinished is taken away. Throws Error.
  Results(const std::string& path, const std::string& pack);
  Results(const Results&) = delete;
  ~Results();

  // Starts a file with what another one holds: results of an earlier visit, which were put into the pack. Throws Error.
  static void Copy(const std::string& from, const std::string& to);

  // Whether an earlier run with this pack brought the entry to its end.
  bool Has(const std::string& entry) const { return ended_.count(entry) > 0; }

  // Whether anything that was written, then or now, is wrong.
  bool HasWrong() const { return wrong_; }

  // A line and its end, on disk when this returns. Throws Error: no space.
  void Append(const std::string& line);

  const std::string& path() const { return path_; }

 private:
  void Take(const std::string& line);

  std::string path_, pack_, current_;
  int file_ = -1;
  std::set<std::string> ended_;
  bool wrong_ = false;
};

}  // namespace tensorwright::pack
