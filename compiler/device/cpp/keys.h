// Keys in PEM files, as `tensorwright key new` and OpenSSL write them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace tensorwright {

constexpr size_t kKeyBytes = 32;
using Key = std::array<uint8_t, kKeyBytes>;

// Ed25519 keys sign modules, X25519 keys open connections.
enum class KeyKind { kEd25519, kX25519 };

// The public key of a PEM file. Throws Error where there is none of that kind, or one of small order.
Key ReadPublicKey(const std::string& path, KeyKind kind);

// The public keys of a file, or of every .pem and .pub file of a folder, in the order of their names. Throws Error as above, and for
// a folder without keys.
std::vector<Key> ReadPublicKeys(const std::string& path, KeyKind kind);

// The X25519 private key of a PEM file. Throws Error where it is encrypted, or others than its owner may read it.
Key ReadPrivateKey(const std::string& path);

// Writes a new X25519 private key to a new file that its owner alone may read, and the public key to `path`.pub.
// Throws Error.
void WriteNewKey(const std::string& path);

// The name of a key in errors: its first 8 bytes.
std::string NameOf(const Key& key);

}  // namespace tensorwright
