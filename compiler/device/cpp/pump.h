// Carries bytes between a client and the process of its session, and ends sessions that take too long.
#pragma once

#include <string>

#include "wire.h"

namespace tensorwright {

struct TimeLimits {
  int idle_seconds = 900;   // a client may leave an answer unread, or send no request
  int run_seconds = 3600;   // a session may take to answer
};

// Until one of the two has closed. `given` is what the client said already. Returns why the session was ended, "" where
// it ended by itself.
std::string Pump(Wire* wire, int client, int session, std::string given, const TimeLimits& limits);

}  // namespace tensorwright
