#include "wire.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "artifact.h"

namespace tensorwright {
namespace {

constexpr size_t kMaxMessage = 65535;  // Noise's

bool WaitUntil(Clock::time_point end, int descriptor, short events) {
  for (;;) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    if (left <= 0) return false;
    pollfd wait{descriptor, events, 0};
    int ready = poll(&wait, 1, static_cast<int>(std::min<int64_t>(left + 1, 60'000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

}  // namespace

bool ReadBy(Clock::time_point end, int descriptor, void* data, size_t size) {
  for (size_t done = 0; done < size;) {
    if (!WaitUntil(end, descriptor, POLLIN)) return false;
    ssize_t count = recv(descriptor, static_cast<char*>(data) + done, size - done, MSG_DONTWAIT);
    if (count == 0 || (count < 0 && errno != EINTR && errno != EAGAIN)) return false;
    done += static_cast<size_t>(std::max<ssize_t>(count, 0));
  }
  return true;
}

bool WriteBy(Clock::time_point end, int descriptor, const void* data, size_t size) {
  for (size_t done = 0; done < size;) {
    if (!WaitUntil(end, descriptor, POLLOUT)) return false;
    ssize_t count = send(descriptor, static_cast<const char*>(data) + done, size - done, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && errno != EINTR && errno != EAGAIN) return false;
    done += static_cast<size_t>(std::max<ssize_t>(count, 0));
  }
  return true;
}

void Wire::Encrypt(NoiseResponder* handshake) {
  handshake->Split(&receive_, &send_);
  encrypted_ = true;
}

bool Wire::Open(const char* data, size_t size, std::string* plain) {
  if (!encrypted_) {
    plain->append(data, size);
    return true;
  }
  partial_.append(data, size);
  size_t start = 0;
  while (partial_.size() - start >= 2) {
    const uint8_t* message = reinterpret_cast<const uint8_t*>(partial_.data()) + start;
    size_t length = message[0] | static_cast<size_t>(message[1]) << 8;
    if (partial_.size() - start < 2 + length) break;
    if (!receive_.Decrypt(message + 2, length, nullptr, 0, plain)) return false;
    start += 2 + length;
  }
  partial_.erase(0, start);
  return true;
}

void Wire::Seal(const char* data, size_t size, std::string* sealed) {
  if (!encrypted_) {
    sealed->append(data, size);
    return;
  }
  for (size_t start = 0; start < size;) {
    size_t count = std::min(size - start, kMaxMessage - kTagBytes), length = count + kTagBytes;
    sealed->push_back(static_cast<char>(length & 255));
    sealed->push_back(static_cast<char>(length >> 8));
    send_.Encrypt(reinterpret_cast<const uint8_t*>(data) + start, count, nullptr, 0, sealed);
    start += count;
  }
}

void Wire::Forget() {
  receive_.Forget();
  send_.Forget();
}

std::string Frame(const std::string& content) {
  std::string frame;
  for (int i = 0; i < 4; ++i) frame.push_back(static_cast<char>(content.size() >> 8 * i & 255));
  return frame + content;
}

bool TakeFrame(std::string* bytes, size_t longest, std::string* content) {
  if (bytes->size() < 4) return false;
  size_t length = 0;
  for (int i = 0; i < 4; ++i) length |= static_cast<size_t>(static_cast<uint8_t>((*bytes)[i])) << 8 * i;
  if (length > longest) throw Error("the client sent a frame of " + std::to_string(length) + " bytes, and " + std::to_string(longest) + " are allowed");
  if (bytes->size() - 4 < length) return false;
  *content = bytes->substr(4, length);
  bytes->erase(0, 4 + length);
  return true;
}

}  // namespace tensorwright
