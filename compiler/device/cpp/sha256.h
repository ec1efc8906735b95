// SHA-256 (FIPS 180-4), and the hash tree of module files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace tensorwright {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  void Update(const void* data, size_t size);
  Digest Finish();

 private:
  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t pending_[64];
  size_t pending_size_ = 0;
  uint64_t total_ = 0;
};

// The digest over leaves of 1 MiB: SHA-256("tree", size, leaf count, leaf digests), numbers as 8 bytes little-endian.
Digest TreeDigest(const uint8_t* data, size_t size);

std::string Hex(const Digest& digest);

}  // namespace tensorwright
