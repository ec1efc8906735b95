// The stages of running an entry, each in a process of its own. Each stage is a line of JSON on standard output as soon as it is
// known, so that a crash in a later one takes nothing away.
#pragma once

#include <string>

namespace tensorwright::pack {

// Numbers, then times of runs and of kernels. Exit status: 0 right, 1 wrong. Throws Error where it cannot be run.
int RunEntry(const std::string& pack, const std::string& name);

// Begins a line of TraceEntry that names the call which is started next.
constexpr const char* kCallBegins = "call ";

// Runs kernel by kernel and names the first one that fails or whose results are not those that were recorded.
int TraceEntry(const std::string& pack, const std::string& name);

// Writes what each kernel leaves in its results: `output`.json, which says what, and `output`.bin, the numbers.
int RecordEntry(const std::string& pack, const std::string& name, const std::string& output);

// Describes the device. Throws Error where the pack cannot run on it.
int DescribeDevice(const std::string& pack);

}  // namespace tensorwright::pack
