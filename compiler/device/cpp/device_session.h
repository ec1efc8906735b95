// The process of one session: receives a module, verifies it and makes it active; or runs kernels for a tuner.
//
// A session starts with the client's frame "modules" or "kernels", which the server answers with "ok" and its
// description (JSON). Then, for modules, each request is a frame with one response frame, "ok ..." or "error ...":
//   active           digest of the active module, and why an earlier one was moved aside
//   upload BYTES     followed, after the response, by frames of data; a second response when all have arrived
//   check            checksums, and the signature if keys are trusted; the digest
//   verify           the largest difference of the reference run
//   measure RUNS     milliseconds: the median and the 99th percentile
//   times RUNS       the same, and on a GPU those without copies and of a CUDA graph: JSON, in the runner's format
//   activate         nothing
// For kernels the rest of the session is TVM's RPC.
#pragma once

#include <string>

#include "device.h"
#include "storage.h"

namespace tensorwright {

constexpr int kDeviceProtocol = 2;  // incremented when the meaning of a request changes
constexpr size_t kMaxRequest = 256, kMaxData = 1 << 20;

enum class SessionKind { kModules, kKernels };

struct SessionLimits {
  uint64_t module_bytes = uint64_t{4} << 30;  // limit for a module, and for all files of a session together
  int idle_seconds = 900;                     // limit on the pauses of an upload
};

// Description of the server, as JSON.
std::string DescribeServer(bool kernels_allowed, const DeviceList& devices);

// Serves the other end of `descriptor` until it is closed. The process is ended afterwards.
void ServeModules(int descriptor, const Storage& storage, const std::string& scratch, const TrustedKeys& trusted, const SessionLimits& limits);
void ServeKernels(int descriptor, const std::string& scratch, const SessionLimits& limits, bool has_devices);

}  // namespace tensorwright
