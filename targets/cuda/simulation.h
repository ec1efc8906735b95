// The subset of CUDA used by generated kernels, on a CPU. A block's threads run one after the other; if they
// synchronize, each is a fiber that runs until it waits. The first lane of a warp computes tensor-core operations.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
using uint = unsigned int;
using uchar = unsigned char;
using ushort = unsigned short;

struct dim3 { int64_t x = 1, y = 1, z = 1; };
static struct { int x, y, z; } threadIdx, blockIdx;
static struct { int x, y, z; } blockDim, gridDim;

namespace simulation {

struct Any {
  int32_t type = 0;
  uint32_t padding = 0;
  union { int64_t integer; double real; void* pointer; };
  Any() : integer(0) {}
};

template <class T> T argument(const Any& any) {
  if constexpr (std::is_pointer_v<T>) return (T)any.pointer;
  else if constexpr (std::is_floating_point_v<T>) return (T)(any.type == 3 ? any.real : (double)any.integer);
  else if constexpr (std::is_integral_v<T>) return (T)any.integer;
  else return T((float)any.real);
}

struct Launch {
  dim3 grid, block;
  int64_t dynamic_shared = 0;
};

static uchar* dynamic_shared = nullptr;
constexpr size_t kStackBytes = 256 << 10;
enum State { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber {
  ucontext_t context;
  State state = kReady;
  int x = 0, y = 0, z = 0;
  uint64_t exchanged = 0;  // value passed by a shuffle
  uint64_t kept = 0;
  std::unique_ptr<uchar[]> stack{new uchar[kStackBytes]};
};

static std::vector<Fiber> fibers;
static size_t current = 0;
static ucontext_t scheduler;
static std::function<void()> body;
static bool cooperating = false;

static void main_of_fiber() {
  body();
  fibers[current].state = kDone;
}

__attribute__((noinline)) static void wait(State state) {
  if (!cooperating) return;
  Fiber& fiber = fibers[current];
  fiber.state = state;
  swapcontext(&fiber.context, &scheduler);
}

static size_t linear_thread() { return cooperating ? current : 0; }

// Runs all runnable fibers; then lanes that wait for their warp continue together, and if there are none, the block.
static void run_block(size_t count) {
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    fiber.x = i % blockDim.x, fiber.y = i / blockDim.x % blockDim.y, fiber.z = i / blockDim.x / blockDim.y;
    fiber.state = kReady;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, main_of_fiber, 0);
  }
  while (true) {
    for (current = 0; current < count; ++current) {
      if (fibers[current].state != kReady) continue;
      threadIdx = {fibers[current].x, fibers[current].y, fibers[current].z};
      swapcontext(&scheduler, &fibers[current].context);
    }
    bool warp = false, block = false;
    for (size_t i = 0; i < count; ++i) warp = warp || fibers[i].state == kAtWarp, block = block || fibers[i].state == kAtBlock;
    if (!warp && !block) return;
    for (size_t i = 0; i < count; ++i)
      if (fibers[i].state == (warp ? kAtWarp : kAtBlock)) fibers[i].kept = fibers[i].exchanged, fibers[i].state = kReady;
  }
}

static void run(const Launch& launch, bool cooperative, std::function<void()> kernel) {
  static std::mutex mutex;
  std::lock_guard<std::mutex> guard(mutex);
  std::vector<uchar> shared(launch.dynamic_shared + 64, 0xFF);
  dynamic_shared = (uchar*)(((uintptr_t)shared.data() + 63) & ~(uintptr_t)63);
  gridDim = {(int)launch.grid.x, (int)launch.grid.y, (int)launch.grid.z};
  blockDim = {(int)launch.block.x, (int)launch.block.y, (int)launch.block.z};
  size_t count = (size_t)launch.block.x * launch.block.y * launch.block.z;
  cooperating = cooperative;
  body = std::move(kernel);
  if (cooperative && fibers.size() < count) fibers = std::vector<Fiber>(count);
  for (int z = 0; z < gridDim.z; ++z)
    for (int y = 0; y < gridDim.y; ++y)
      for (int x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, y, z};
        if (cooperative) { run_block(count); continue; }
        for (int c = 0; c < blockDim.z; ++c)
          for (int b = 0; b < blockDim.y; ++b)
            for (int a = 0; a < blockDim.x; ++a) { threadIdx = {a, b, c}; body(); }
      }
}

// Shared memory as a block finds it: bytes that are NaN for any float, so that reads of uninitialized memory show.
inline void forget(void* memory, size_t bytes) {
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) std::memset(memory, 0xFF, bytes);
}

inline int lane() { return (int)(linear_thread() % 32); }

template <class T> T exchange(T value, int source_lane, int width) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  if (!cooperating) return value;
  size_t own = current, warp = own / 32 * 32;
  fibers[own].exchanged = 0;
  std::memcpy(&fibers[own].exchanged, &value, sizeof(T));
  wait(kAtWarp);
  int first = lane() / width * width;
  size_t from = warp + source_lane;
  bool inside = source_lane >= first && source_lane < first + width && from < (size_t)blockDim.x * blockDim.y * blockDim.z;
  T result = value;
  if (inside) std::memcpy(&result, &fibers[from].kept, sizeof(T));
  return result;
}

}  // namespace simulation

// Host code selects the device before each launch; here there is nothing to select.
extern "C" int __tvm_ffi___tvm_set_device(void*, const simulation::Any*, int, simulation::Any* result) {
  *result = simulation::Any{};
  return 0;
}

inline void __syncthreads() { simulation::wait(simulation::kAtBlock); }
inline void __syncwarp(unsigned = ~0u) { simulation::wait(simulation::kAtWarp); }
inline unsigned __activemask() { return ~0u; }
template <class T> T __shfl_sync(unsigned, T v, int from, int width = 32) { return simulation::exchange(v, simulation::lane() / width * width + from % width, width); }
template <class T> T __shfl_down_sync(unsigned, T v, int by, int width = 32) { return simulation::exchange(v, simulation::lane() + by, width); }
template <class T> T __shfl_up_sync(unsigned, T v, int by, int width = 32) { return simulation::exchange(v, simulation::lane() - by, width); }
template <class T> T __shfl_xor_sync(unsigned, T v, int mask, int width = 32) { return simulation::exchange(v, simulation::lane() ^ mask, width); }

// Narrow floats: 16-bit values, computed in float and rounded to nearest even.
namespace simulation {
inline float float_of(uint32_t bits) { float f; std::memcpy(&f, &bits, 4); return f; }
inline uint32_t bits_of(float f) { uint32_t b; std::memcpy(&b, &f, 4); return b; }
inline float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp((float)mantissa, -24);
  return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}
inline uint16_t float_to_half(float f) {
  uint32_t b = bits_of(f), sign = b >> 16 & 0x8000, a = b & 0x7fffffff;
  if (a > 0x7f800000) return sign | 0x7e00;
  if (a >= 0x477ff000) return sign | 0x7c00;
  if (a < 0x38800000) return sign | (uint16_t)std::nearbyint(std::ldexp(float_of(a), 24));
  return sign | (uint16_t)((a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13);
}
inline float bfloat_to_float(uint16_t h) { return float_of((uint32_t)h << 16); }
inline uint16_t float_to_bfloat(float f) {
  uint32_t b = bits_of(f);
  if ((b & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
}  // namespace simulation

#define NARROW_FLOAT(NAME, FROM, TO)                                                                            \
  struct NAME {                                                                                                 \
    uint16_t bits;                                                                                              \
    NAME() = default;                                                                                           \
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> NAME(T v) : bits(TO((float)v)) {}     \
    operator float() const { return FROM(bits); }                                                               \
    NAME operator-() const { NAME r; r.bits = bits ^ 0x8000; return r; }                                        \
    NAME& operator+=(NAME o) { return *this = NAME((float)*this + (float)o); }                                  \
    NAME& operator*=(NAME o) { return *this = NAME((float)*this * (float)o); }                                  \
  };                                                                                                            \
  inline NAME operator+(NAME a, NAME b) { return NAME((float)a + (float)b); }                                   \
  inline NAME operator-(NAME a, NAME b) { return NAME((float)a - (float)b); }                                   \
  inline NAME operator*(NAME a, NAME b) { return NAME((float)a * (float)b); }                                   \
  inline NAME operator/(NAME a, NAME b) { return NAME((float)a / (float)b); }                                   \
  inline bool operator<(NAME a, NAME b) { return (float)a < (float)b; }                                         \
  inline bool operator>(NAME a, NAME b) { return (float)a > (float)b; }                                         \
  inline bool operator<=(NAME a, NAME b) { return (float)a <= (float)b; }                                       \
  inline bool operator>=(NAME a, NAME b) { return (float)a >= (float)b; }                                       \
  inline bool operator==(NAME a, NAME b) { return (float)a == (float)b; }                                       \
  inline bool operator!=(NAME a, NAME b) { return (float)a != (float)b; }                                       \
  inline NAME max(NAME a, NAME b) { return (float)a > (float)b || (float)b != (float)b ? a : b; }               \
  inline NAME min(NAME a, NAME b) { return (float)a < (float)b || (float)b != (float)b ? a : b; }               \
  inline NAME __habs(NAME a) { NAME r; r.bits = a.bits & 0x7fff; return r; }                                    \
  inline NAME __hadd(NAME a, NAME b) { return a + b; }                                                          \
  inline NAME __hmul(NAME a, NAME b) { return a * b; }                                                          \
  inline NAME __hfma(NAME a, NAME b, NAME c) { return NAME((float)a * (float)b + (float)c); }                   \
  inline NAME __hmax(NAME a, NAME b) { return max(a, b); }                                                      \
  inline NAME __hmin(NAME a, NAME b) { return min(a, b); }                                                      \
  inline NAME hexp(NAME a) { return NAME(std::exp((float)a)); }                                                 \
  inline NAME hsqrt(NAME a) { return NAME(std::sqrt((float)a)); }                                               \
  inline NAME hlog(NAME a) { return NAME(std::log((float)a)); }                                                 \
  inline NAME hfloor(NAME a) { return NAME(std::floor((float)a)); }                                             \
  inline NAME hceil(NAME a) { return NAME(std::ceil((float)a)); }                                               \
  inline NAME htrunc(NAME a) { return NAME(std::trunc((float)a)); }                                             \
  inline NAME hrint(NAME a) { return NAME(std::nearbyint((float)a)); }                                          \
  inline NAME hpow(NAME a, NAME b) { return NAME(std::pow((float)a, (float)b)); }                               \
  inline NAME htanh(NAME a) { return NAME(std::tanh((float)a)); }                                               \
  inline NAME herf(NAME a) { return NAME(std::erf((float)a)); }
NARROW_FLOAT(half, simulation::half_to_float, simulation::float_to_half)
NARROW_FLOAT(nv_bfloat16, simulation::bfloat_to_float, simulation::float_to_bfloat)
#undef NARROW_FLOAT
using __half = half;
using __nv_bfloat16 = nv_bfloat16;
inline half __float2half_rn(float v) { return half(v); }
inline half __float2half(float v) { return half(v); }
inline float __half2float(half v) { return v; }
inline nv_bfloat16 __float2bfloat16(float v) { return nv_bfloat16(v); }
inline nv_bfloat16 __float2bfloat16_rn(float v) { return nv_bfloat16(v); }
inline float __bfloat162float(nv_bfloat16 v) { return v; }

// Vectors.
#define VECTORS(TYPE, NAME, MAKE)                                                                    \
  struct alignas(2 * sizeof(TYPE)) NAME##2 { TYPE x, y; };                                           \
  struct NAME##3 { TYPE x, y, z; };                                                                  \
  struct alignas(sizeof(TYPE) < 8 ? 4 * sizeof(TYPE) : 16) NAME##4 { TYPE x, y, z, w; };             \
  inline NAME##2 MAKE##2(TYPE x, TYPE y) { return {x, y}; }                                          \
  inline NAME##3 MAKE##3(TYPE x, TYPE y, TYPE z) { return {x, y, z}; }                               \
  inline NAME##4 MAKE##4(TYPE x, TYPE y, TYPE z, TYPE w) { return {x, y, z, w}; }
VECTORS(float, float, make_float)
VECTORS(double, double, make_double)
VECTORS(signed char, char, make_char)
VECTORS(unsigned char, uchar, make_uchar)
VECTORS(short, short, make_short)
VECTORS(unsigned short, ushort, make_ushort)
VECTORS(int, int, make_int)
VECTORS(unsigned, uint, make_uint)
VECTORS(int64_t, longlong, make_longlong)
VECTORS(uint64_t, ulonglong, make_ulonglong)
#undef VECTORS
struct alignas(4) half2 { half x, y; };
struct alignas(4) nv_bfloat162 { nv_bfloat16 x, y; };
struct alignas(8) half4 { half x, y, z, w; };
struct alignas(8) nv_bfloat164 { nv_bfloat16 x, y, z, w; };
inline half2 make_half2(half x, half y) { return {x, y}; }
inline half4 make_half4(half x, half y, half z, half w) { return {x, y, z, w}; }
inline nv_bfloat164 make_nv_bfloat164(nv_bfloat16 x, nv_bfloat16 y, nv_bfloat16 z, nv_bfloat16 w) { return {x, y, z, w}; }
inline nv_bfloat162 make_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
inline unsigned __pack_half2(half x, half y) { return x.bits | (unsigned)y.bits << 16; }
inline unsigned __pack_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return x.bits | (unsigned)y.bits << 16; }
inline unsigned __pack_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return x.bits | (unsigned)y.bits << 16; }

// Functions.
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
inline auto max(A a, B b) { using T = std::common_type_t<A, B>; return (T)a > (T)b || (T)b != (T)b ? (T)a : (T)b; }
template <class A, class B, class = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
inline auto min(A a, B b) { using T = std::common_type_t<A, B>; return (T)a < (T)b || (T)b != (T)b ? (T)a : (T)b; }
#define __expf(x) std::exp((float)(x))
#define __exp10f(x) std::pow(10.0f, (float)(x))
#define __logf(x) std::log((float)(x))
#define __log2f(x) std::log2((float)(x))
#define __log10f(x) std::log10((float)(x))
#define __powf(x, y) std::pow((float)(x), (float)(y))
#define __sinf(x) std::sin((float)(x))
#define __cosf(x) std::cos((float)(x))
#define __tanf(x) std::tan((float)(x))
#define __fdividef(x, y) ((float)(x) / (float)(y))
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(unsigned long long x) { return x ? __builtin_clzll(x) : 64; }
inline float __int_as_float(int x) { return simulation::float_of((uint32_t)x); }
inline float __uint_as_float(unsigned x) { return simulation::float_of(x); }
inline int __float_as_int(float x) { return (int)simulation::bits_of(x); }
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN
#define CUDART_INF ((double)INFINITY)
#define CUDART_NAN ((double)NAN)
#define CUDART_INF_FP16 half(INFINITY)
#define CUDART_NAN_FP16 half(NAN)
template <class T, class V> T atomicAdd(T* p, V v) { T old = *p; *p = old + (T)v; return old; }
template <class T, class V> T atomicMax(T* p, V v) { T old = *p; if ((T)v > old) *p = (T)v; return old; }
template <class T, class V> T atomicMin(T* p, V v) { T old = *p; if ((T)v < old) *p = (T)v; return old; }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += (int)(int8_t)(a >> i) * (int)(int8_t)(b >> i);
  return c;
}

// Tensor cores.
namespace nvcuda {
namespace wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M;
  static constexpr int columns = std::is_same_v<Use, matrix_a> ? K : N;
  T values[rows * columns];
};
template <class F, class V> void fill_fragment(F& f, V v) {
  if (simulation::lane() == 0) for (auto& each : f.values) each = v;
}
template <class U, int M, int N, int K, class T, class L, class P>
void load_matrix_sync(fragment<U, M, N, K, T, L>& f, const P* p, unsigned stride) {
  if (simulation::lane()) return;
  using F = fragment<U, M, N, K, T, L>;
  for (int i = 0; i < F::rows; ++i)
    for (int j = 0; j < F::columns; ++j)
      f.values[i * F::columns + j] = std::is_same_v<L, col_major> ? p[j * stride + i] : p[i * stride + j];
}
template <int M, int N, int K, class T, class P>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const P* p, unsigned stride, layout_t layout) {
  if (simulation::lane()) return;
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) f.values[i * N + j] = layout == mem_col_major ? p[j * stride + i] : p[i * stride + j];
}
template <int M, int N, int K, class T, class P>
void store_matrix_sync(P* p, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout) {
  if (simulation::lane()) return;
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) (layout == mem_col_major ? p[j * stride + i] : p[i * stride + j]) = f.values[i * N + j];
}
template <int M, int N, int K, class T, class I, class LA, class LB>
void mma_sync(fragment<accumulator, M, N, K, T>& d, const fragment<matrix_a, M, N, K, I, LA>& a,
              const fragment<matrix_b, M, N, K, I, LB>& b, const fragment<accumulator, M, N, K, T>& c) {
  if (simulation::lane()) return;
  using Sum = std::conditional_t<std::is_integral_v<T>, int, float>;
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) {
      Sum sum = (Sum)c.values[i * N + j];
      for (int k = 0; k < K; ++k) sum += (Sum)a.values[i * K + k] * (Sum)b.values[k * N + j];
      d.values[i * N + j] = sum;
    }
}
}  // namespace wmma
}  // namespace nvcuda
