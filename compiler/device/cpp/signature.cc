#include "signature.h"

#include <sodium.h>

#include <algorithm>
#include <cstring>

namespace tensorwright {
namespace {

constexpr char kBlockMagic[9] = "TWMSIGN\x01";
constexpr char kSignedContext[] = "tensorwright module signature v1";  // its terminating zero is part of the signed message
constexpr size_t kBlockHead = 16, kSignatureEntry = kKeyBytes + 64, kBlockDigest = 32, kMaxSignatures = 64;

bool IsValidSignature(const Signature& signature, const Digest& digest) {
  uint8_t message[sizeof kSignedContext + sizeof(Digest)];
  std::memcpy(message, kSignedContext, sizeof kSignedContext);
  std::memcpy(message + sizeof kSignedContext, digest.data(), digest.size());
  return crypto_sign_verify_detached(signature.value.data(), message, sizeof message, signature.public_key.data()) == 0;
}

}  // namespace

std::vector<Signature> ParseSignatures(Span block, const std::string& origin) {
  if (block.size == 0) return {};
  bool whole = block.size >= kBlockHead + kSignatureEntry + kBlockDigest && (block.size - kBlockHead - kBlockDigest) % kSignatureEntry == 0;
  size_t count = whole ? (block.size - kBlockHead - kBlockDigest) / kSignatureEntry : 0;
  uint32_t announced = 0;
  if (whole) {
    std::memcpy(&announced, block.data + 8, sizeof announced);
    Sha256 sum;
    sum.Update(block.data, block.size - kBlockDigest);
    const uint8_t zeros[4] = {};
    whole = count <= kMaxSignatures && announced == count && std::memcmp(block.data, kBlockMagic, 8) == 0 && std::memcmp(block.data + 12, zeros, 4) == 0 &&
            std::memcmp(sum.Finish().data(), block.data + block.size - kBlockDigest, kBlockDigest) == 0;
  }
  if (!whole) throw Error(origin + " is damaged: the data after its content is not a signature block");
  std::vector<Signature> signatures(count);
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* each = block.data + kBlockHead + i * kSignatureEntry;
    std::copy(each, each + kKeyBytes, signatures[i].public_key.begin());
    std::copy(each + kKeyBytes, each + kSignatureEntry, signatures[i].value.begin());
  }
  return signatures;
}

void TrustedKeys::Add(const std::string& path) {
  for (const Key& key : ReadPublicKeys(path, KeyKind::kEd25519)) keys_.push_back(key);
}

void TrustedKeys::Check(const std::vector<Signature>& signatures, const Digest& digest, const std::string& origin) const {
  if (signatures.empty()) throw Error(origin + " is not signed", "a signature by a trusted key is required: sign it");
  bool found = false;
  std::string names;
  for (const Signature& each : signatures) {
    names += (names.empty() ? "" : ", ") + NameOf(each.public_key);
    if (std::find(keys_.begin(), keys_.end(), each.public_key) == keys_.end()) continue;
    found = true;
    if (!IsValidSignature(each, digest)) throw Error(origin + ": the signature by trusted key " + NameOf(each.public_key) + "... is wrong");
  }
  if (!found) throw Error(origin + " is signed by none of the trusted keys, only by " + names + "...");
}

}  // namespace tensorwright
