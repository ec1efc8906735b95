#include "generator.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include "dtypes.h"
#include "numbers.h"

namespace tensorwright::pack {
namespace {

constexpr int64_t kLargest = 127;
constexpr int64_t kMaxExponent = 200;  // exponents are stored with this added

int8_t Weight(uint64_t seed, uint64_t position, uint64_t row) {
  if (position % row == 0) return kLargest;
  return static_cast<int8_t>(static_cast<int64_t>((Bits(seed, position) >> 32) % (2 * kLargest + 1)) - kLargest);
}

float Real(uint64_t seed, uint64_t position) {
  uint64_t drawn = Bits(seed, position);
  int64_t total = 0;
  for (int shift = 0; shift < 64; shift += 16) total += static_cast<int64_t>((drawn >> shift) & 0xFFFF);
  return static_cast<float>(static_cast<double>(total - 2 * 0xFFFF) / 32768);
}

// Weights of a source array whose axes are put into another order.
void FillWeights(const JsonValue& make, Writer* writer) {
  uint64_t seed = static_cast<uint64_t>(make["seed"].Whole(0, kMaxSeed));
  uint64_t row = static_cast<uint64_t>(make["row"].Whole(1, kMaxElements));
  double unit = std::ldexp(1.0, static_cast<int>(make["exponent"].Whole(0, 2 * kMaxExponent) - kMaxExponent));
  std::vector<int64_t> source = Sizes(make["source"]), order = Sizes(make["order"]);
  size_t rank = source.size();
  if (order.size() != rank || std::accumulate(source.begin(), source.end(), int64_t{1}, std::multiplies<>()) != writer->size()) {
    make.Fail("its sizes are not those of the tensor");
  }
  std::vector<int64_t> strides(rank, 1), index(rank, 0);
  for (size_t axis = rank; axis-- > 1;) strides[axis - 1] = strides[axis] * source[axis];
  for (int64_t axis : order) {
    if (axis >= static_cast<int64_t>(rank)) make.Fail("it has no axis " + std::to_string(axis));
  }
  for (int64_t i = 0; i < writer->size(); ++i) {
    int64_t from = 0;
    for (size_t axis = 0; axis < rank; ++axis) from += index[axis] * strides[static_cast<size_t>(order[axis])];
    writer->Put(i, unit * Weight(seed, static_cast<uint64_t>(from), row));
    for (size_t axis = rank; axis-- > 0;) {
      if (++index[axis] < source[static_cast<size_t>(order[axis])]) break;
      index[axis] = 0;
    }
  }
}

void Fill(const JsonValue& make, Span stored, const ffi::Tensor& tensor) {
  std::string kind = make["kind"].Text();
  Writer writer(*tensor.GetDLTensorPtr());
  if (kind == "stored") {
    size_t bytes = TensorBytes(*tensor.GetDLTensorPtr());
    size_t offset = static_cast<size_t>(make["offset"].Whole(0, kMaxElements));
    if (offset > stored.size || stored.size - offset < bytes) make.Fail("the stored tensors end before it");
    std::memcpy(tensor.data_ptr(), stored.data + offset, bytes);
  } else if (kind == "weights") {
    FillWeights(make, &writer);
  } else if (kind == "reals") {
    uint64_t seed = static_cast<uint64_t>(make["seed"].Whole(0, kMaxSeed));
    for (int64_t i = 0; i < writer.size(); ++i) writer.Put(i, Real(seed, static_cast<uint64_t>(i)));
  } else if (kind == "integers") {
    uint64_t seed = static_cast<uint64_t>(make["seed"].Whole(0, kMaxSeed));
    int64_t low = make["low"].Whole(-kMaxElements, kMaxElements), high = make["high"].Whole(low + 1, kMaxElements);
    for (int64_t i = 0; i < writer.size(); ++i) {
      writer.Put(i, static_cast<double>(low + static_cast<int64_t>(Bits(seed, static_cast<uint64_t>(i)) % static_cast<uint64_t>(high - low))));
    }
  } else {
    make.Fail("unknown kind " + Quoted(kind));
  }
}

}  // namespace

std::vector<int64_t> Sizes(const JsonValue& list) {
  std::vector<int64_t> sizes;
  for (const JsonValue& each : list.Items(kMaxDimensions)) sizes.push_back(each.Whole(0, kMaxElements));
  return sizes;
}

uint64_t Bits(uint64_t seed, uint64_t position) {
  uint64_t state = seed + (position + 1) * 0x9E3779B97F4A7C15u;
  state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9u;
  state = (state ^ (state >> 27)) * 0x94D049BB133111EBu;
  return state ^ (state >> 31);
}

std::vector<int64_t> Positions(uint64_t seed, int64_t count, int64_t size) {
  std::vector<int64_t> places(static_cast<size_t>(std::min(count, size)));
  if (size <= count) {
    std::iota(places.begin(), places.end(), 0);
  } else {
    for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int64_t>(Bits(seed, i) % static_cast<uint64_t>(size));
  }
  return places;
}

ffi::Tensor MakeTensor(const JsonValue& description, Span stored) {
  const ElementType* type = FindElementType(description["dtype"].Text());
  if (!type) description.Fail("unknown element type");
  ffi::Tensor tensor = NewTensor(Sizes(description["shape"]), type->dtype);
  Fill(description["make"], stored, tensor);
  return tensor;
}

}  // namespace tensorwright::pack
