#include "pump.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

namespace tensorwright {
namespace {

constexpr size_t kMaxBuffered = 256 << 10;  // above this, the other side must receive first
constexpr int kFarewellSeconds = 2;          // time limit for a session to end once its client has left

// Sends pending bytes, without blocking. False if the peer has closed.
bool SendSome(int descriptor, std::string* waiting) {
  ssize_t count = send(descriptor, waiting->data(), waiting->size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  if (count > 0) waiting->erase(0, static_cast<size_t>(count));
  return count >= 0 || errno == EAGAIN || errno == EINTR;
}

// Receives bytes without blocking: 0 if the peer has closed, -1 if there are none.
ssize_t ReceiveSome(int descriptor, char* data, size_t size) {
  ssize_t count = recv(descriptor, data, size, MSG_DONTWAIT);
  if (count < 0) return errno == EAGAIN || errno == EINTR ? -1 : 0;
  return count;
}

}  // namespace

std::string Pump(Wire* wire, int client, int session, std::string given, const TimeLimits& limits) {
  std::string to_session = std::move(given), to_client;
  char data[32 << 10];
  bool client_left = false, answered = to_session.empty();
  Clock::time_point last = Clock::now();
  for (;;) {
    bool for_client = answered || !to_client.empty();
    int allowed = client_left ? kFarewellSeconds : for_client ? limits.idle_seconds : limits.run_seconds;
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(last + std::chrono::seconds(allowed) - Clock::now()).count();
    if (left <= 0) {
      if (client_left) return "";
      return for_client ? "the client was idle for " + std::to_string(allowed) + " s" : "no answer was ready after " + std::to_string(allowed) + " s";
    }
    short from_client = !client_left && to_session.size() < kMaxBuffered ? POLLIN : 0, from_session = to_client.size() < kMaxBuffered ? POLLIN : 0;
    pollfd wait[2] = {{client_left ? -1 : client, static_cast<short>(from_client | (to_client.empty() ? 0 : POLLOUT)), 0},
                      {session, static_cast<short>(from_session | (to_session.empty() ? 0 : POLLOUT)), 0}};
    if (poll(wait, 2, static_cast<int>(left < 60'000 ? left + 1 : 60'000)) <= 0) continue;
    if (wait[0].revents & (POLLIN | POLLHUP | POLLERR)) {
      ssize_t count = ReceiveSome(client, data, sizeof data);
      if (count > 0 && !wire->Open(data, static_cast<size_t>(count), &to_session)) return "a message was not encrypted by the client";
      if (count > 0) answered = false;
      if (count == 0) client_left = true;
      if (count >= 0) last = Clock::now();
      if (client_left && to_session.empty()) shutdown(session, SHUT_WR);
    }
    if (wait[0].revents & POLLOUT) {
      if (!SendSome(client, &to_client)) client_left = true;
      last = Clock::now();
    }
    if (wait[1].revents & POLLOUT) {
      if (!SendSome(session, &to_session)) to_session.clear();
      if (client_left && to_session.empty()) shutdown(session, SHUT_WR);
    }
    if (wait[1].revents & (POLLIN | POLLHUP | POLLERR)) {
      ssize_t count = ReceiveSome(session, data, sizeof data);
      if (count > 0) wire->Seal(data, static_cast<size_t>(count), &to_client), answered = true, last = Clock::now();
      if (count == 0) {
        WriteBy(Clock::now() + std::chrono::seconds(kFarewellSeconds), client, to_client.data(), to_client.size());
        return "";
      }
    }
  }
}

}  // namespace tensorwright
