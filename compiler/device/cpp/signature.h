// Ed25519 signatures of module files. The block that holds them is described in the signature module of the Python package.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "artifact.h"
#include "keys.h"
#include "sha256.h"

namespace tensorwright {

struct Signature {
  Key public_key;
  std::array<uint8_t, 64> value;
};

// The signature block after the content of a module file. Throws Error unless there is none, or a whole one.
std::vector<Signature> ParseSignatures(Span block, const std::string& origin);

// The public keys whose signatures a program accepts. Without any it accepts every module.
class TrustedKeys {
 public:
  // The key of a PEM file, or of each .pem and .pub file of a folder. Throws Error.
  void Add(const std::string& path);

  bool empty() const { return keys_.empty(); }

  // Throws Error unless there is a signature by one of the keys over the digest of a file's head, and none that is wrong.
  void Check(const std::vector<Signature>& signatures, const Digest& digest, const std::string& origin) const;

 private:
  std::vector<Key> keys_;
};

}  // namespace tensorwright
