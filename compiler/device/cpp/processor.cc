#include "processor.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tensorwright {
namespace {

#if defined(__x86_64__)
constexpr char kArchitecture[] = "x86_64";

// The CPUID bit of each feature (Intel's and AMD's manuals, as in LLVM's Host.cpp), and the state that the OS must save
// for it.
enum Register { kEax, kEbx, kEcx, kEdx };
enum Saved : uint64_t { kNothing = 0, kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000 };
struct Feature {
  const char* name;
  uint32_t leaf, subleaf;
  Register place;
  int bit;
  Saved saved;
};
constexpr Feature kFeatures[] = {
    {"cx8", 1, 0, kEdx, 8, kNothing},
    {"cmov", 1, 0, kEdx, 15, kNothing},
    {"mmx", 1, 0, kEdx, 23, kNothing},
    {"fxsr", 1, 0, kEdx, 24, kNothing},
    {"sse", 1, 0, kEdx, 25, kNothing},
    {"sse2", 1, 0, kEdx, 26, kNothing},
    {"sse3", 1, 0, kEcx, 0, kNothing},
    {"pclmul", 1, 0, kEcx, 1, kNothing},
    {"ssse3", 1, 0, kEcx, 9, kNothing},
    {"fma", 1, 0, kEcx, 12, kYmm},
    {"cx16", 1, 0, kEcx, 13, kNothing},
    {"sse4.1", 1, 0, kEcx, 19, kNothing},
    {"sse4.2", 1, 0, kEcx, 20, kNothing},
    {"crc32", 1, 0, kEcx, 20, kNothing},
    {"movbe", 1, 0, kEcx, 22, kNothing},
    {"popcnt", 1, 0, kEcx, 23, kNothing},
    {"aes", 1, 0, kEcx, 25, kNothing},
    {"avx", 1, 0, kEcx, 28, kYmm},
    {"f16c", 1, 0, kEcx, 29, kYmm},
    {"rdrnd", 1, 0, kEcx, 30, kNothing},
    {"bmi", 7, 0, kEbx, 3, kNothing},
    {"avx2", 7, 0, kEbx, 5, kYmm},
    {"bmi2", 7, 0, kEbx, 8, kNothing},
    {"avx512f", 7, 0, kEbx, 16, kZmm},
    {"avx512dq", 7, 0, kEbx, 17, kZmm},
    {"rdseed", 7, 0, kEbx, 18, kNothing},
    {"adx", 7, 0, kEbx, 19, kNothing},
    {"avx512ifma", 7, 0, kEbx, 21, kZmm},
    {"avx512cd", 7, 0, kEbx, 28, kZmm},
    {"sha", 7, 0, kEbx, 29, kNothing},
    {"avx512bw", 7, 0, kEbx, 30, kZmm},
    {"avx512vl", 7, 0, kEbx, 31, kZmm},
    {"avx512vbmi", 7, 0, kEcx, 1, kZmm},
    {"avx512vbmi2", 7, 0, kEcx, 6, kZmm},
    {"gfni", 7, 0, kEcx, 8, kNothing},
    {"vaes", 7, 0, kEcx, 9, kYmm},
    {"vpclmulqdq", 7, 0, kEcx, 10, kYmm},
    {"avx512vnni", 7, 0, kEcx, 11, kZmm},
    {"avx512bitalg", 7, 0, kEcx, 12, kZmm},
    {"avx512vpopcntdq", 7, 0, kEcx, 14, kZmm},
    {"avx512vp2intersect", 7, 0, kEdx, 8, kZmm},
    {"amx-bf16", 7, 0, kEdx, 22, kTiles},
    {"avx512fp16", 7, 0, kEdx, 23, kZmm},
    {"amx-tile", 7, 0, kEdx, 24, kTiles},
    {"amx-int8", 7, 0, kEdx, 25, kTiles},
    {"amx-fp16", 7, 1, kEax, 21, kTiles},
    {"avxvnni", 7, 1, kEax, 4, kYmm},
    {"avx512bf16", 7, 1, kEax, 5, kZmm},
    {"avxifma", 7, 1, kEax, 23, kYmm},
    {"avxvnniint8", 7, 1, kEdx, 4, kYmm},
    {"avxneconvert", 7, 1, kEdx, 5, kYmm},
    {"avxvnniint16", 7, 1, kEdx, 10, kYmm},
    {"sahf", 0x80000001, 0, kEcx, 0, kNothing},
    {"lzcnt", 0x80000001, 0, kEcx, 5, kNothing},
    {"sse4a", 0x80000001, 0, kEcx, 6, kNothing},
    {"prfchw", 0x80000001, 0, kEcx, 8, kNothing},
    {"64bit", 0x80000001, 0, kEdx, 29, kNothing},
};

// The register state that the OS saves (XCR0).
uint64_t SavedRegisters() {
  uint32_t eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return 0;  // OSXSAVE
  __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
  return uint64_t{edx} << 32 | eax;
}

// True if the system permits this process to use the tile registers: Linux grants them to all threads on request.
bool AllowsTiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
#else
  return false;
#endif
}

bool Has(const Feature& feature) {
  uint32_t found[4];
  if (!__get_cpuid_count(feature.leaf, feature.subleaf, &found[kEax], &found[kEbx], &found[kEcx], &found[kEdx])) return false;
  if (!(found[feature.place] >> feature.bit & 1) || (SavedRegisters() & feature.saved) != feature.saved) return false;
  return feature.saved != kTiles || AllowsTiles();
}

#elif defined(__aarch64__) || defined(__arm__)
// Bits of AT_HWCAP and AT_HWCAP2 (Linux's arch/arm64 and arch/arm, include/uapi/asm/hwcap.h).
struct Feature {
  const char* name;
  unsigned long first, second;
};
#if defined(__aarch64__)
constexpr char kArchitecture[] = "aarch64";
constexpr Feature kFeatures[] = {
    {"fp-armv8", 1ul << 0, 0},
    {"neon", 1ul << 1, 0},
    {"aes", 1ul << 3, 0},
    {"crc", 1ul << 7, 0},
    {"lse", 1ul << 8, 0},
    {"fullfp16", 1ul << 9 | 1ul << 10, 0},
    {"rdm", 1ul << 12, 0},
    {"jsconv", 1ul << 13, 0},
    {"complxnum", 1ul << 14, 0},
    {"dotprod", 1ul << 20, 0},
    {"sve", 1ul << 22, 0},
    {"fp16fml", 1ul << 23, 0},
    {"sve2", 0, 1ul << 1},
    {"i8mm", 0, 1ul << 13},
    {"bf16", 0, 1ul << 14},
};
#else
constexpr char kArchitecture[] = "armv7";
constexpr Feature kFeatures[] = {
    {"neon", 1ul << 12, 0},
    {"vfp3", 1ul << 13, 0},
    {"vfp4", 1ul << 16, 0},
    {"hwdiv-arm", 1ul << 17, 0},
    {"hwdiv", 1ul << 18, 0},
    {"fp-armv8", 0, 0},
};
#endif

bool Has(const Feature& feature) {
#if defined(__arm__)
  // It has no bit: all ARMv8 processors have it.
  auto platform = reinterpret_cast<const char*>(getauxval(AT_PLATFORM));
  if (std::strcmp(feature.name, "fp-armv8") == 0) return platform && platform[0] == 'v' && platform[1] >= '8';
#endif
  return (getauxval(AT_HWCAP) & feature.first) == feature.first && (getauxval(AT_HWCAP2) & feature.second) == feature.second;
}

#elif defined(__riscv)
constexpr char kArchitecture[] = "riscv64";
// Letters are bits of AT_HWCAP; others are bits from the call riscv_hwprobe (Linux's asm/hwprobe.h).
struct Feature {
  const char* name;
  int bit;
};
constexpr Feature kFeatures[] = {
    {"64bit", -1},
    {"m", -1},
    {"a", -1},
    {"f", -1},
    {"d", -1},
    {"c", -1},
    {"v", -1},
    {"zba", 3},
    {"zbb", 4},
    {"zbs", 5},
    {"zfh", 27},
    {"zfhmin", 28},
    {"zvfh", 30},
    {"zvfhmin", 31},
};

bool Has(const Feature& feature) {
  if (feature.bit < 0) return feature.name[1] != '\0' || getauxval(AT_HWCAP) >> (feature.name[0] - 'a') & 1;
  struct {
    int64_t key;
    uint64_t value;
  } extensions{4, 0};  // RISCV_HWPROBE_KEY_IMA_EXT_0
  constexpr long kProbe = 258;
  return syscall(kProbe, &extensions, 1, 0, nullptr, 0) == 0 && extensions.key == 4 && extensions.value >> feature.bit & 1;
}

#else
#error "modules are not compiled for this architecture"
#endif

}  // namespace

const char* Architecture() { return kArchitecture; }

std::vector<std::string> ProcessorFeatures() {
  std::vector<std::string> found;
  for (const Feature& feature : kFeatures) {
    if (Has(feature)) found.push_back(feature.name);
  }
  return found;
}

std::vector<std::string> MissingFeatures(const std::vector<std::string>& required) {
  std::vector<std::string> present = ProcessorFeatures(), missing;
  for (const std::string& name : required) {
    if (std::find(present.begin(), present.end(), name) == present.end()) missing.push_back(name);
  }
  return missing;
}

}  // namespace tensorwright
