// The process of one client: the handshake, then a session in a separate process, whose bytes it transfers.
//
// A client starts with one of
//   "TWPLAIN2"               frames follow
//   "TWNOISE2", a message    a handshake (noise.h, the prologue is these 8 bytes); the server's begins with the same 8
// bytes or with the magic number of TVM's RPC. A server with keys only accepts encrypted connections of clients that it
// knows. On an error it responds with "TWERROR2", a length (u16) and a text.
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

// Serves a client. Over `control` it asks the main process for a slot ('?', once the client is authenticated), which
// responds with 'y' or 'n'. Ends the process.
[[noreturn]] void ServeVisitor(int client, int control, const Storage& storage, ServerSettings* settings);

}  // namespace tensorwright
