// Runs programs, which may crash or hang, as child processes.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace tensorwright::pack {

struct Ended {
  bool late = false;   // it was killed at its time limit
  int status = 0;      // its exit status, or 128 and the signal that ended it
  std::string errors;  // the last of what it wrote to standard error

  // "signal 11 (Segmentation fault)", "exit status 1: ...", with the last words.
  std::string Words() const;
};

// Runs a program; `line` gets each line of its standard output as it comes. Its whole group is ended with it, when its time
// is over, and when this process ends.
Ended RunChild(const std::vector<std::string>& command, double seconds, const std::function<void(const std::string&)>& line);

// Seconds of a monotonic clock.
double Now();

}  // namespace tensorwright::pack
