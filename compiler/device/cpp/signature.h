// Ed25519 signatures of module files. Their block is documented in the signature module of the Python package.
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

// The signature block after the content of a module file. Throws Error if it is incomplete; it may be missing.
std::vector<Signature> ParseSignatures(Span block, const std::string& origin);

// The public keys whose signatures a program accepts. Without keys it accepts every module.
class TrustedKeys {
 public:
  // The key in a PEM file, or in each .pem and .pub file of a folder. Throws Error.
  void Add(const std::string& path);

  bool empty() const { return keys_.empty(); }

  // Throws Error unless there is a signature by one of the keys over the digest of a file's header, and no invalid one.
  void Check(const std::vector<Signature>& signatures, const Digest& digest, const std::string& origin) const;

 private:
  std::vector<Key> keys_;
};

}  // namespace tensorwright
