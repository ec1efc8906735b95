#include "random.h"

#include <array>
#include <cstddef>

namespace tensorwright {
namespace {

constexpr size_t kPool = 4;

uint32_t Hashed(uint32_t value, uint32_t* constant) {
  value ^= *constant;
  *constant *= 0x931e8875u;
  value *= *constant;
  return value ^ value >> 16;
}

uint32_t Mixed(uint32_t left, uint32_t right) {
  uint32_t value = 0xca01f9ddu * left - 0x4973f715u * right;
  return value ^ value >> 16;
}

// Four 64-bit numbers, like SeedSequence(seed).generate_state(4, uint64).
std::array<uint64_t, 4> Seeds(uint64_t seed) {
  std::array<uint32_t, kPool> entropy = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), 0, 0}, pool;
  uint32_t constant = 0x43b0d7e5u;
  for (size_t i = 0; i < kPool; ++i) pool[i] = Hashed(entropy[i], &constant);
  for (size_t from = 0; from < kPool; ++from) {
    for (size_t to = 0; to < kPool; ++to) {
      if (from != to) pool[to] = Mixed(pool[to], Hashed(pool[from], &constant));
    }
  }
  std::array<uint64_t, 4> seeds{};
  constant = 0x8b51f9ddu;
  for (size_t i = 0; i < 2 * seeds.size(); ++i) {
    uint32_t value = pool[i % kPool] ^ constant;
    constant *= 0x58f38dedu;
    value *= constant;
    value ^= value >> 16;
    seeds[i / 2] |= uint64_t{value} << 32 * (i % 2);
  }
  return seeds;
}

}  // namespace

Random::Wide Random::Sum(Wide left, Wide right) {
  uint64_t low = left.low + right.low;
  return {left.high + right.high + (low < left.low), low};
}

// A 128-bit integer; not all 32-bit compilers have such a type.
Random::Wide Random::Product(Wide left, Wide right) {
  const uint64_t mask = 0xFFFFFFFFu;
  uint64_t a = left.low >> 32, b = left.low & mask, c = right.low >> 32, d = right.low & mask;
  uint64_t middle = (b * d >> 32) + (a * d & mask) + (b * c & mask);
  uint64_t high = a * c + (a * d >> 32) + (b * c >> 32) + (middle >> 32);
  return {high + left.high * right.low + left.low * right.high, left.low * right.low};
}

void Random::Advance() { state_ = Sum(Product(state_, {2549297995355413924u, 4865540595714422341u}), increment_); }

Random::Random(uint64_t seed) : state_{0, 0} {
  std::array<uint64_t, 4> seeds = Seeds(seed);
  increment_ = {seeds[2] << 1 | seeds[3] >> 63, seeds[3] << 1 | 1};
  Advance();
  state_ = Sum(state_, {seeds[0], seeds[1]});
  Advance();
}

double Random::Next() {
  Advance();
  uint64_t folded = state_.high ^ state_.low, turns = state_.high >> 58;
  uint64_t value = folded >> turns | folded << ((64 - turns) & 63);
  return static_cast<double>(value >> 11) * (1.0 / 9007199254740992.0);
}

}  // namespace tensorwright
