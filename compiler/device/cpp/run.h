// The program that runs a module; its options are described in run.cc.
#pragma once

#include <functional>

namespace tensorwright {

// The exit status. Throws Error where something fails.
int RunnerMain(int count, char** arguments);

// The exit status of a program, 1 where it throws: the message is printed then.
int Guarded(const std::function<int()>& program);

}  // namespace tensorwright
