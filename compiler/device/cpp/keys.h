// Keys in PEM files, as written by `tensorwright key new` and OpenSSL.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace tensorwright {

constexpr size_t kKeyBytes = 32;
using Key = std::array<uint8_t, kKeyBytes>;

// Ed25519 keys sign modules, X25519 keys establish connections.
enum class KeyKind { kEd25519, kX25519 };

// The public key in a PEM file. Throws Error if there is none of that kind, or if it has small order.
Key ReadPublicKey(const std::string& path, KeyKind kind);

// The public keys in a file, or in every .pem and .pub file of a folder, ordered by name. Throws Error as above, and
// for a folder without keys.
std::vector<Key> ReadPublicKeys(const std::string& path, KeyKind kind);

// The X25519 private key in a PEM file. Throws Error if it is encrypted, or readable by others than its owner.
Key ReadPrivateKey(const std::string& path);

// Writes a new X25519 private key to a new file that only its owner can read, and the public key to `path`.pub.
// Throws Error.
void WriteNewKey(const std::string& path);

// The name of a key in errors: its first 8 bytes.
std::string NameOf(const Key& key);

}  // namespace tensorwright
