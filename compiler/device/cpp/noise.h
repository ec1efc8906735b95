// The responder of Noise_IK_25519_ChaChaPoly_SHA256 (noiseprotocol.org, revision 34), on libsodium's primitives.
//
// The initiator knows the responder's static key beforehand and sends its own, encrypted; both are proven in one round
// trip. Fresh ephemeral keys make every session's keys new: a recorded session cannot be decrypted later with a static
// key, and a replayed first message leads to keys that the attacker does not have. So only a message after the
// handshake proves who the initiator is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "keys.h"

namespace tensorwright {

constexpr size_t kTagBytes = 16;
constexpr size_t kFirstMessageBytes = kKeyBytes + kKeyBytes + kTagBytes + kTagBytes;  // e, encrypted s, empty payload
constexpr size_t kSecondMessageBytes = kKeyBytes + kTagBytes;                        // e, empty payload

// One direction of a session: ChaCha20-Poly1305 with a counter as the nonce.
class Cipher {
 public:
  void Start(const Key& key);

  // Both append to `out`. Decrypt returns false, and appends nothing, if the bytes are not the next encrypted message.
  void Encrypt(const uint8_t* data, size_t size, const uint8_t* associated, size_t associated_size, std::string* out);
  bool Decrypt(const uint8_t* data, size_t size, const uint8_t* associated, size_t associated_size, std::string* out);

  void Forget();

 private:
  void Nonce(uint8_t (&nonce)[12]);

  Key key_{};
  uint64_t counter_ = 0;
};

class NoiseResponder {
 public:
  NoiseResponder(const Key& private_key, const std::string& prologue);
  ~NoiseResponder();

  // False if the message was not made for this responder's key; otherwise sets the initiator's static public key.
  bool ReadFirst(const uint8_t (&message)[kFirstMessageBytes], Key* initiator);

  // The response. False if the initiator's keys yield no secret.
  bool WriteSecond(std::string* message);

  // The ciphers of the session, after both messages.
  void Split(Cipher* receive, Cipher* send);

 private:
  void MixHash(const uint8_t* data, size_t size);
  bool MixKey(const Key& private_key, const Key& public_key);
  bool DecryptAndHash(const uint8_t* data, size_t size, std::string* plain);

  Key static_, static_public_, initiator_{}, remote_ephemeral_{};
  Key hash_, chaining_;
  Cipher cipher_;
};

}  // namespace tensorwright
