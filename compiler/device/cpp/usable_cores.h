// The processors and cores that this process may use. The Python package counts in the same way (targets/processors.py,
// which gives the reasons).
#pragma once

#include <string>
#include <vector>

namespace tensorwright {

// Logical processors: affinity and the quota of control groups respected; at least 1. `root` is of the file system.
int UsableProcessors(const std::string& root = "/");

// Physical cores that make a run faster: no second thread of a core, no cores so slow that the others wait for them.
int UsableCores(const std::string& root = "/");

// How many cores finish equal parts of some work the earliest, by their speeds; the fewest of them.
int Worthwhile(std::vector<double> speeds);

}  // namespace tensorwright
