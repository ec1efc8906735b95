// The processors and cores that this process may use. The Python package counts in the same way (targets/processors.py,
// which gives the reasons).
#pragma once

#include <string>
#include <vector>

namespace tensorwright {

// Logical processors, limited by affinity and by the quota of control groups; at least 1. `root` is that of the file
// system.
int UsableProcessors(const std::string& root = "/");

// Physical cores that make a run faster: no second thread of a core, no cores so slow that the others would wait for
// them.
int UsableCores(const std::string& root = "/");

// Number of cores that finish equal parts of some work earliest, by their speeds; the smallest such number.
int Worthwhile(std::vector<double> speeds);

}  // namespace tensorwright
