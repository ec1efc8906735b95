#include "keys.h"

#include <dirent.h>
#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "artifact.h"

namespace tensorwright {
namespace {

constexpr size_t kMaxKeyFile = 16384;

// SubjectPublicKeyInfo and PKCS #8 (RFC 8410) of these keys: everything except the key itself is constant.
constexpr uint8_t kPublicPrefix[] = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0, 0x03, 0x21, 0x00};
constexpr uint8_t kPrivatePrefix[] = {0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0, 0x04, 0x22, 0x04, 0x20};
constexpr size_t kPublicKind = 8, kPrivateKind = 11;  // where the last byte of the algorithm's identifier is

uint8_t Identifier(KeyKind kind) { return kind == KeyKind::kEd25519 ? 0x70 : 0x6e; }

const char* KindName(KeyKind kind) { return kind == KeyKind::kEd25519 ? "Ed25519" : "X25519"; }

void PrepareSodium() {
  if (sodium_init() < 0) throw Error("libsodium could not be initialized");
}

std::string ReadKeyFile(const std::string& path) {
  PrepareSodium();
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxKeyFile + 1, '\0');
  if (!file) throw Error("the key file " + path + " cannot be read: " + std::strerror(errno));
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxKeyFile) throw Error(path + " is too long for a key file");
  return text;
}

// The bytes of the PEM block with this label; empty if there is none.
std::vector<uint8_t> PemBlock(const std::string& text, const std::string& label) {
  const std::string begin = "-----BEGIN " + label + "-----", end = "-----END " + label + "-----";
  size_t start = text.find(begin);
  size_t stop = start == std::string::npos ? start : text.find(end, start + begin.size());
  if (stop == std::string::npos) return {};
  start += begin.size();
  std::vector<uint8_t> bytes(stop - start);
  size_t size = 0;
  if (sodium_base642bin(bytes.data(), bytes.size(), text.data() + start, stop - start, " \t\r\n", &size, nullptr, sodium_base64_VARIANT_ORIGINAL) != 0) return {};
  bytes.resize(size);
  return bytes;
}

// The key after a prefix whose byte `at` names the algorithm. False if the bytes have another form.
template <size_t count>
bool KeyBehind(const std::vector<uint8_t>& bytes, const uint8_t (&prefix)[count], size_t at, KeyKind kind, Key* key) {
  if (bytes.size() != count + kKeyBytes) return false;
  for (size_t i = 0; i < count; ++i) {
    if (bytes[i] != (i == at ? Identifier(kind) : prefix[i])) return false;
  }
  std::copy(bytes.begin() + count, bytes.end(), key->begin());
  return true;
}

// With a key of small order, anyone can make valid signatures or shared secrets.
void RefuseSmallOrder(const Key& key, KeyKind kind, const std::string& path) {
  Key scalar{}, product;
  scalar[0] = 1;
  bool usable = kind == KeyKind::kEd25519 ? crypto_core_ed25519_is_valid_point(key.data()) == 1 : crypto_scalarmult_curve25519(product.data(), scalar.data(), key.data()) == 0;
  if (!usable) throw Error(path + " holds no usable " + KindName(kind) + " public key: it is not a point of the prime-order group");
}

bool IsFolder(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

template <size_t count>
std::string Pem(const char* label, const uint8_t (&prefix)[count], size_t at, const Key& key) {
  std::vector<uint8_t> bytes(prefix, prefix + count);
  bytes[at] = Identifier(KeyKind::kX25519);
  bytes.insert(bytes.end(), key.begin(), key.end());
  char text[sodium_base64_ENCODED_LEN(count + kKeyBytes, sodium_base64_VARIANT_ORIGINAL)];
  sodium_bin2base64(text, sizeof text, bytes.data(), bytes.size(), sodium_base64_VARIANT_ORIGINAL);
  return std::string("-----BEGIN ") + label + "-----\n" + text + "\n-----END " + label + "-----\n";
}

void WriteKeyFile(const std::string& path, const std::string& text, mode_t mode) {
  int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (descriptor < 0) throw Error(path + ": " + std::strerror(errno));
  ssize_t written = write(descriptor, text.data(), text.size());
  if (close(descriptor) != 0 || written != static_cast<ssize_t>(text.size())) {
    unlink(path.c_str());
    throw Error(path + " could not be written: " + std::strerror(errno));
  }
}

}  // namespace

Key ReadPublicKey(const std::string& path, KeyKind kind) {
  Key key;
  if (!KeyBehind(PemBlock(ReadKeyFile(path), "PUBLIC KEY"), kPublicPrefix, kPublicKind, kind, &key)) {
    throw Error(path + " holds no " + KindName(kind) + " public key in PEM form");
  }
  RefuseSmallOrder(key, kind, path);
  return key;
}

std::vector<Key> ReadPublicKeys(const std::string& path, KeyKind kind) {
  if (!IsFolder(path)) return {ReadPublicKey(path, kind)};
  std::vector<std::string> names;
  DIR* listing = opendir(path.c_str());
  if (!listing) throw Error("the folder of keys " + path + " cannot be read: " + std::strerror(errno));
  while (dirent* entry = readdir(listing)) {
    std::string name = entry->d_name;
    std::string ending = name.size() > 4 && name[0] != '.' ? name.substr(name.size() - 4) : "";
    if (ending == ".pem" || ending == ".pub") names.push_back(name);
  }
  closedir(listing);
  std::sort(names.begin(), names.end());
  if (names.empty()) throw Error("the folder of keys " + path + " holds no .pem or .pub file");
  std::vector<Key> keys;
  for (const std::string& name : names) keys.push_back(ReadPublicKey(path + "/" + name, kind));
  return keys;
}

Key ReadPrivateKey(const std::string& path) {
  std::string text = ReadKeyFile(path);
  struct stat status;
  if (stat(path.c_str(), &status) == 0 && status.st_mode & 077) throw Error("others may read the private key " + path + ": chmod 600 " + path);
  if (text.find("BEGIN ENCRYPTED PRIVATE KEY") != std::string::npos) throw Error("the private key " + path + " is encrypted, and a device cannot ask for its passphrase");
  std::vector<uint8_t> bytes = PemBlock(text, "PRIVATE KEY");
  Key key;
  bool found = KeyBehind(bytes, kPrivatePrefix, kPrivateKind, KeyKind::kX25519, &key);
  sodium_memzero(text.data(), text.size());
  sodium_memzero(bytes.data(), bytes.size());
  if (!found) throw Error(path + " holds no X25519 private key in PEM form");
  return key;
}

void WriteNewKey(const std::string& path) {
  PrepareSodium();
  Key key, open;
  randombytes_buf(key.data(), key.size());
  crypto_scalarmult_curve25519_base(open.data(), key.data());
  WriteKeyFile(path, Pem("PRIVATE KEY", kPrivatePrefix, kPrivateKind, key), 0600);
  sodium_memzero(key.data(), key.size());
  WriteKeyFile(path + ".pub", Pem("PUBLIC KEY", kPublicPrefix, kPublicKind, open), 0644);
}

std::string NameOf(const Key& key) {
  char text[2 * kKeyBytes + 1];
  return std::string(sodium_bin2hex(text, sizeof text, key.data(), key.size()), 16);
}

}  // namespace tensorwright
