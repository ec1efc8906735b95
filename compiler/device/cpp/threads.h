// How many threads a run uses, on top of TVM's thread pool.
#pragma once

namespace tensorwright {

// Sets TVM's pool up, unless the environment did: a module's own setting (0: none) is bounded by the processors that
// this process may use. Throws Error where TVM_NUM_THREADS asks for more than the machine can serve. Has an effect
// only before the calling thread first runs a kernel.
void SetUpThreads(int setting);

}  // namespace tensorwright
