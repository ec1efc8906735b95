// The program that runs a module; its options are documented in run.cc.
#pragma once

#include <functional>

namespace tensorwright {

// Returns the exit status. Throws Error on failure.
int RunnerMain(int count, char** arguments);

// Returns the exit status of a program, or 1 if it throws, and prints the message then.
int Guarded(const std::function<int()>& program);

}  // namespace tensorwright
