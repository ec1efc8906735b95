#include "noise.h"

#include <sodium.h>

#include <algorithm>
#include <cstring>

#include "artifact.h"

namespace tensorwright {
namespace {

constexpr char kProtocolName[] = "Noise_IK_25519_ChaChaPoly_SHA256";
static_assert(sizeof kProtocolName == kKeyBytes + 1, "a name of the hash's length is the first hash");

const uint8_t* Bytes(const std::string& text) { return reinterpret_cast<const uint8_t*>(text.data()); }

// HKDF with two outputs, as defined by Noise.
void Derive(const Key& chaining, const uint8_t* input, size_t size, Key* first, Key* second) {
  Key temporary;
  uint8_t block[kKeyBytes + 1];
  const uint8_t one = 1;
  crypto_auth_hmacsha256(temporary.data(), input, size, chaining.data());
  crypto_auth_hmacsha256(first->data(), &one, 1, temporary.data());
  std::copy(first->begin(), first->end(), block);
  block[kKeyBytes] = 2;
  crypto_auth_hmacsha256(second->data(), block, sizeof block, temporary.data());
  sodium_memzero(temporary.data(), temporary.size());
  sodium_memzero(block, sizeof block);
}

}  // namespace

void Cipher::Start(const Key& key) {
  key_ = key;
  counter_ = 0;
}

void Cipher::Nonce(uint8_t (&nonce)[12]) {
  std::memset(nonce, 0, 4);
  for (int i = 0; i < 8; ++i) nonce[4 + i] = static_cast<uint8_t>(counter_ >> 8 * i);
  ++counter_;  // no session sends 2^64 messages
}

void Cipher::Encrypt(const uint8_t* data, size_t size, const uint8_t* associated, size_t associated_size, std::string* out) {
  uint8_t nonce[12];
  Nonce(nonce);
  size_t start = out->size();
  out->resize(start + size + kTagBytes);
  crypto_aead_chacha20poly1305_ietf_encrypt(reinterpret_cast<uint8_t*>(&(*out)[start]), nullptr, data, size, associated, associated_size, nullptr, nonce, key_.data());
}

bool Cipher::Decrypt(const uint8_t* data, size_t size, const uint8_t* associated, size_t associated_size, std::string* out) {
  if (size < kTagBytes) return false;
  uint8_t nonce[12];
  Nonce(nonce);
  size_t start = out->size();
  out->resize(start + size - kTagBytes);
  // Room for an empty message, too: its pointer must not be past the end.
  uint8_t none, *plain = size > kTagBytes ? reinterpret_cast<uint8_t*>(&(*out)[start]) : &none;
  bool valid = crypto_aead_chacha20poly1305_ietf_decrypt(plain, nullptr, nullptr, data, size, associated, associated_size, nonce, key_.data()) == 0;
  if (!valid) out->resize(start);
  return valid;
}

void Cipher::Forget() { sodium_memzero(key_.data(), key_.size()); }

NoiseResponder::NoiseResponder(const Key& private_key, const std::string& prologue) : static_(private_key) {
  if (sodium_init() < 0) throw Error("libsodium could not be initialized");
  crypto_scalarmult_curve25519_base(static_public_.data(), static_.data());
  std::copy(kProtocolName, kProtocolName + kKeyBytes, hash_.begin());
  chaining_ = hash_;
  MixHash(Bytes(prologue), prologue.size());
  MixHash(static_public_.data(), kKeyBytes);
}

NoiseResponder::~NoiseResponder() {
  sodium_memzero(static_.data(), kKeyBytes);
  sodium_memzero(chaining_.data(), kKeyBytes);
  cipher_.Forget();
}

void NoiseResponder::MixHash(const uint8_t* data, size_t size) {
  crypto_hash_sha256_state state;
  crypto_hash_sha256_init(&state);
  crypto_hash_sha256_update(&state, hash_.data(), kKeyBytes);
  crypto_hash_sha256_update(&state, data, size);
  crypto_hash_sha256_final(&state, hash_.data());
}

bool NoiseResponder::MixKey(const Key& private_key, const Key& public_key) {
  Key secret, next, key;
  if (crypto_scalarmult_curve25519(secret.data(), private_key.data(), public_key.data()) != 0) return false;
  Derive(chaining_, secret.data(), kKeyBytes, &next, &key);
  chaining_ = next;
  cipher_.Start(key);
  for (Key* each : {&secret, &next, &key}) sodium_memzero(each->data(), kKeyBytes);
  return true;
}

bool NoiseResponder::DecryptAndHash(const uint8_t* data, size_t size, std::string* plain) {
  if (!cipher_.Decrypt(data, size, hash_.data(), kKeyBytes, plain)) return false;
  MixHash(data, size);
  return true;
}

bool NoiseResponder::ReadFirst(const uint8_t (&message)[kFirstMessageBytes], Key* initiator) {
  const uint8_t *encrypted = message + kKeyBytes, *payload = encrypted + kKeyBytes + kTagBytes;
  std::copy(message, encrypted, remote_ephemeral_.begin());
  MixHash(message, kKeyBytes);
  std::string key, nothing;
  if (!MixKey(static_, remote_ephemeral_) || !DecryptAndHash(encrypted, kKeyBytes + kTagBytes, &key)) return false;
  std::copy(key.begin(), key.end(), initiator_.begin());
  if (!MixKey(static_, initiator_) || !DecryptAndHash(payload, kTagBytes, &nothing)) return false;
  *initiator = initiator_;
  return true;
}

bool NoiseResponder::WriteSecond(std::string* message) {
  Key ephemeral, open;
  randombytes_buf(ephemeral.data(), kKeyBytes);
  crypto_scalarmult_curve25519_base(open.data(), ephemeral.data());
  MixHash(open.data(), kKeyBytes);
  bool secret = MixKey(ephemeral, remote_ephemeral_) && MixKey(ephemeral, initiator_);
  sodium_memzero(ephemeral.data(), kKeyBytes);
  if (!secret) return false;
  message->append(open.begin(), open.end());
  size_t start = message->size();
  cipher_.Encrypt(nullptr, 0, hash_.data(), kKeyBytes, message);
  MixHash(Bytes(*message) + start, kTagBytes);
  return true;
}

void NoiseResponder::Split(Cipher* receive, Cipher* send) {
  Key first, second;
  Derive(chaining_, nullptr, 0, &first, &second);
  receive->Start(first);
  send->Start(second);
  sodium_memzero(first.data(), kKeyBytes);
  sodium_memzero(second.data(), kKeyBytes);
}

}  // namespace tensorwright
