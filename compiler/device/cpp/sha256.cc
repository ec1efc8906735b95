#include "sha256.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "sha256_blocks.h"

namespace tensorwright {
namespace {

constexpr size_t kLeafBytes = size_t{1} << 20;
constexpr size_t kParallelFromLeaves = 4, kMaxHashing = 8;

void AppendNumber(Sha256* hash, uint64_t value) {
  uint8_t bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
  hash->Update(bytes, sizeof bytes);
}

}  // namespace

void Sha256::Update(const void* data, size_t size) {
  auto bytes = static_cast<const uint8_t*>(data);
  total_ += size;
  if (pending_size_) {
    size_t taken = std::min(size, sizeof pending_ - pending_size_);
    std::memcpy(pending_ + pending_size_, bytes, taken);
    pending_size_ += taken, bytes += taken, size -= taken;
    if (pending_size_ < sizeof pending_) return;
    HashBlocks(state_, pending_, 1);
    pending_size_ = 0;
  }
  HashBlocks(state_, bytes, size / 64);
  bytes += size / 64 * 64, size %= 64;
  std::memcpy(pending_, bytes, size);
  pending_size_ = size;
}

Digest Sha256::Finish() {
  uint64_t bits = total_ * 8;
  uint8_t padding[72] = {0x80};
  size_t zeros = (119 - pending_size_ % 64) % 64 + 1;
  for (int i = 0; i < 8; ++i) padding[zeros + i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  Update(padding, zeros + 8);
  Digest digest;
  for (int i = 0; i < 32; ++i) digest[i] = static_cast<uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
  return digest;
}

Digest TreeDigest(const uint8_t* data, size_t size) {
  size_t leaves = (size + kLeafBytes - 1) / kLeafBytes;
  std::vector<Digest> digests(leaves);
  std::atomic<size_t> next{0};
  auto work = [&] {
    for (size_t i = next++; i < leaves; i = next++) {
      Sha256 leaf;
      leaf.Update(data + i * kLeafBytes, std::min(kLeafBytes, size - i * kLeafBytes));
      digests[i] = leaf.Finish();
    }
  };
  std::vector<std::thread> helpers;
  size_t most = std::min<size_t>(kMaxHashing, std::thread::hardware_concurrency());
  try {
    while (leaves >= kParallelFromLeaves && helpers.size() + 1 < most) helpers.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads can be started: the running ones do all of the work
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  Sha256 root;
  root.Update("tree", 4);
  AppendNumber(&root, size);
  AppendNumber(&root, leaves);
  for (const Digest& digest : digests) root.Update(digest.data(), digest.size());
  return root.Finish();
}

std::string Hex(const Digest& digest) {
  static const char* digits = "0123456789abcdef";
  std::string text;
  for (uint8_t byte : digest) text += {digits[byte >> 4], digits[byte & 15]};
  return text;
}

}  // namespace tensorwright
