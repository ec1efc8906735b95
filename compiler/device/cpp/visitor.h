// The process of one client: the handshake, then a session in a process of its own, whose bytes it carries.
//
// A client starts with one of
//   "TWPLAIN2"               frames follow
//   "TWNOISE2", a message    a handshake (noise.h, the prologue is these 8 bytes); the server's begins with the same 8 bytes
// or with the magic number of TVM's RPC. A server that has keys takes encrypted connections of clients that it knows, and
// nothing else. One that cannot go on answers "TWERROR2", a length (u16) and a text.
#pragma once

#include <set>

#include "device_session.h"
#include "pump.h"

namespace tensorwright {

struct ServerSettings {
  bool encrypted = false;
  Key key{};
  std::set<Key> clients;
  TrustedKeys trusted;
  bool kernels_allowed = true;
  DeviceList devices;
  int handshake_seconds = 10;
  TimeLimits times;
  SessionLimits session;
};

// Serves a client. Over `control` the main process is asked for a place ('?', once the client has shown who it is) and
// says 'y' or 'n'. Ends the process.
[[noreturn]] void ServeVisitor(int client, int control, const Storage& storage, ServerSettings* settings);

}  // namespace tensorwright
