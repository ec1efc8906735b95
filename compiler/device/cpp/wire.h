// The bytes on a client's socket: plain, or the messages of a Noise session, each with its length (u16, little-endian)
// before it.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "noise.h"

namespace tensorwright {

using Clock = std::chrono::steady_clock;

// Reads all of `size` bytes before a deadline; false if the peer left or was too slow.
bool ReadBy(Clock::time_point end, int descriptor, void* data, size_t size);
bool WriteBy(Clock::time_point end, int descriptor, const void* data, size_t size);

class Wire {
 public:
  // Encrypts everything from now on.
  void Encrypt(NoiseResponder* handshake);

  // Decrypts received bytes and appends them to `plain`. False if they were not encrypted by the client; the connection
  // must then be closed.
  bool Open(const char* data, size_t size, std::string* plain);

  // Encrypts bytes to be sent and appends them to `sealed`.
  void Seal(const char* data, size_t size, std::string* sealed);

  void Forget();

 private:
  bool encrypted_ = false;
  std::string partial_;  // the beginning of a message
  Cipher receive_, send_;
};

// A frame of the protocol: its length (u32, little-endian), and that many bytes.
std::string Frame(const std::string& content);

// Removes the first frame from `bytes`. False if it is incomplete; throws Error if it is too long.
bool TakeFrame(std::string* bytes, size_t longest, std::string* content);

}  // namespace tensorwright
