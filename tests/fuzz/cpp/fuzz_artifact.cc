// A libFuzzer target for all that the C++ runtime reads: `python -m tests.fuzz.libfuzzer` builds and runs it.
//
// The first byte of an input says what the others are: a module file as it is; one whose checksums are made right first;
// a manifest; a file of inputs; a shared library; or a formula.
#include <algorithm>
#include <cstring>
#include <exception>

#include "exercise.h"
#include "sha256.h"

namespace tensorwright {
namespace {

constexpr size_t kHeadBytes = 64, kEntryBytes = 32, kPrefixBytes = 32;
const char* const kNames[] = {"library", "parameters", "reference_in", "reference_out"};

uint64_t NumberAt(const std::string& file, size_t at, size_t bytes) {
  uint64_t number = 0;
  std::memcpy(&number, file.data() + at, bytes);
  return number;
}

// Writes the digests of the sections into the manifest, and that of the head, as far as their places are in the file.
void MakeChecksumsRight(std::string* file) {
  auto bytes = [&](size_t at) { return reinterpret_cast<const uint8_t*>(file->data()) + at; };
  if (file->size() < kHeadBytes) return;
  size_t table_end = kHeadBytes + kEntryBytes * std::min<uint64_t>(16, NumberAt(*file, 12, 2));
  uint64_t manifest = NumberAt(*file, 16, 8);
  if (table_end > file->size() || manifest > file->size() - table_end) return;
  for (size_t i = 0; i < 4 && kHeadBytes + kEntryBytes * (i + 1) <= table_end; ++i) {
    uint64_t offset = NumberAt(*file, kHeadBytes + kEntryBytes * i + 16, 8), size = NumberAt(*file, kHeadBytes + kEntryBytes * i + 24, 8);
    if (offset > file->size() || size > file->size() - offset) continue;
    std::string key = std::string("\"") + kNames[i] + "\":\"", digest = Hex(TreeDigest(bytes(offset), size));
    size_t place = file->find(key, table_end);
    if (place != std::string::npos && place + key.size() + digest.size() <= table_end + manifest) file->replace(place + key.size(), digest.size(), digest);
  }
  Sha256 head;
  head.Update(bytes(0), kPrefixBytes);
  head.Update(bytes(kHeadBytes), table_end + manifest - kHeadBytes);
  Digest digest = head.Finish();
  std::memcpy(file->data() + kPrefixBytes, digest.data(), digest.size());
}

Description Described(const char* name, const char* type, std::vector<int64_t> shape, std::vector<std::string> dimensions) {
  return {name, type, FindElementType(type)->dtype, std::move(shape), std::move(dimensions)};
}

void ReadSomeInputs(Span file) {
  Manifest manifest;
  manifest.inputs = {Described("x", "float32", {-1, 4}, {"n", ""}), Described("i", "int64", {-1}, {"m"}), Described("b", "bool", {-1}, {"n"})};
  manifest.requirements.push_back({Formula("n*n"), Relation::kAtLeast, Formula("m // 2"), {{"n", "n"}, {"m", "m"}}, "here"});
  manifest.indices.push_back({"i", Formula("n"), std::nullopt, {{"n", "n"}}, "here"});
  ReadInputsOf(manifest, file);
}

void Read(uint8_t what, Span data) {
  std::string text(reinterpret_cast<const char*>(data.data), data.size);
  Span copy{reinterpret_cast<const uint8_t*>(text.data()), text.size()};
  Manifest manifest;
  switch (what % 6) {
    case 0:
      return ReadAll(copy);
    case 1:
      MakeChecksumsRight(&text);
      return ReadAll(copy);
    case 2:
      manifest.Parse(text.data(), text.size(), "the manifest");
      InputChecker{manifest};
      return;
    case 3:
      return ReadSomeInputs(copy);
    case 4:
      MappedCode{copy};
      return;
    default:
      Formula(text).Value({{"n", 7}, {"m", -3}});
  }
}

}  // namespace
}  // namespace tensorwright

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  try {
    tensorwright::Read(data[0], {data + 1, size - 1});
  } catch (const std::exception&) {
    // An error is the right answer to most of it.
  }
  return 0;
}
