// Transfers bytes between a client and the process of its session, and ends sessions that take too long.
#pragma once

#include <string>

#include "wire.h"

namespace tensorwright {

struct TimeLimits {
  int idle_seconds = 900;   // limit for a client that does not read responses or send requests
  int run_seconds = 3600;   // limit for a session's response
};

// Runs until one of the two has closed. `given` are bytes already received from the client. Returns why the session was
// ended, "" if it ended by itself.
std::string Pump(Wire* wire, int client, int session, std::string given, const TimeLimits& limits);

}  // namespace tensorwright
