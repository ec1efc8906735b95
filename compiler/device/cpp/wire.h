// The bytes on a client's socket: plain, or the messages of a Noise session, each behind its length (u16,
// little-endian).
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "noise.h"

namespace tensorwright {

using Clock = std::chrono::steady_clock;

// All of `size` bytes by a moment in time; false where the peer left or was too slow.
bool ReadBy(Clock::time_point end, int descriptor, void* data, size_t size);
bool WriteBy(Clock::time_point end, int descriptor, const void* data, size_t size);

class Wire {
 public:
  // Encrypts from now on.
  void Encrypt(NoiseResponder* handshake);

  // Decrypts what was received and appends it to `plain`. False where it was not encrypted by the client; the
  // connection must then be closed.
  bool Open(const char* data, size_t size, std::string* plain);

  // Encrypts what is to be sent and appends it to `sealed`.
  void Seal(const char* data, size_t size, std::string* sealed);

  void Forget();

 private:
  bool encrypted_ = false;
  std::string partial_;  // the beginning of a message
  Cipher receive_, send_;
};

// A frame of the protocol: its length (u32, little-endian), and that many bytes.
std::string Frame(const std::string& content);

// Removes the first frame from `bytes`. False where it is incomplete; throws Error for one that is too long.
bool TakeFrame(std::string* bytes, size_t longest, std::string* content);

}  // namespace tensorwright
