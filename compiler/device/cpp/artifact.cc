#include "artifact.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "parameter_store.h"
#include "sha256.h"
#include "signature.h"

namespace tensorwright {
namespace {

constexpr size_t kPrefix = 32, kHead = 64, kEntry = 32, kName = 16, kMaxSections = 16;
constexpr uint64_t kMaxManifest = 32 << 20;
constexpr uint16_t kSigned = 1;
constexpr char kMagic[9] = "\x89TWM\r\n\x1a\n";

template <typename T>
T Read(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

[[noreturn]] void Damaged(const std::string& origin, const std::string& what) {
  throw Error(origin + " is damaged: " + what, "copy or export the file again");
}

uint64_t Align(uint64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

bool IsZero(const uint8_t* begin, const uint8_t* end) {
  return std::all_of(begin, end, [](uint8_t byte) { return byte == 0; });
}

}  // namespace

// The fields of the file's header, checked against its size.
struct Artifact::Head {
  size_t sections, table_end, manifest_end, content_end;
  bool is_signed;

  Head(Span file, const std::string& origin) {
    if (file.size < sizeof kMagic - 1 || std::memcmp(file.data, kMagic, sizeof kMagic - 1) != 0) {
      throw Error(origin + " is not a Tensorwright module", "such files are written by module.export(path)");
    }
    if (file.size < kHead) Damaged(origin, "only " + std::to_string(file.size) + " bytes long");
    uint32_t version = Read<uint32_t>(file.data + 8);
    if (version > kFormatVersion) {
      throw Error(origin + " has format version " + std::to_string(version) + "; this program reads up to " + std::to_string(kFormatVersion),
                  "use the programs of the Tensorwright that wrote it, or export it with an older one");
    }
    uint16_t count = Read<uint16_t>(file.data + 12), flags = Read<uint16_t>(file.data + 14);
    uint64_t manifest_bytes = Read<uint64_t>(file.data + 16), content_bytes = Read<uint64_t>(file.data + 24);
    if (count > kMaxSections || manifest_bytes > kMaxManifest || version == 0 || flags > kSigned) Damaged(origin, "its header is not valid");
    uint64_t announced = std::max(kHead + kEntry * count + manifest_bytes, content_bytes);
    if (announced > file.size) Damaged(origin, std::to_string(announced) + " bytes are declared and " + std::to_string(file.size) + " present");
    sections = count, table_end = kHead + kEntry * count, manifest_end = table_end + static_cast<size_t>(manifest_bytes);
    content_end = static_cast<size_t>(content_bytes), is_signed = flags == kSigned;
    if ((file.size > content_end) != is_signed) Damaged(origin, "the data after its content does not match its header");
  }
};

std::shared_ptr<Artifact> Artifact::Open(const std::string& path, const TrustedKeys* trusted) {
  std::shared_ptr<Artifact> artifact(new Artifact());
  artifact->file_.emplace(path);
  artifact->Parse(artifact->file_->span(), path, trusted);
  return artifact;
}

std::shared_ptr<Artifact> Artifact::FromMemory(Span file, const std::string& origin, const TrustedKeys* trusted) {
  std::shared_ptr<Artifact> artifact(new Artifact());
  artifact->Parse(file, origin, trusted);
  return artifact;
}

void Artifact::Forget(const void* data, size_t size) {
  auto begin = static_cast<const uint8_t*>(data);
  if (!file_ || begin < file_->span().data || begin + size > file_->span().data + file_->span().size) return;
  ForgetPages(begin, size);
  parameters = {};
}

void Artifact::Parse(Span file, const std::string& origin, const TrustedKeys* trusted) {
  Head head(file, origin);
  Sha256 sha;
  sha.Update(file.data, kPrefix);
  sha.Update(file.data + kHead, head.manifest_end - kHead);
  Digest found = sha.Finish();
  if (std::memcmp(found.data(), file.data + kPrefix, found.size()) != 0) Damaged(origin, "the checksum of its header does not match");
  digest = Hex(found);
  std::vector<Signature> signatures = ParseSignatures({file.data + head.content_end, file.size - head.content_end}, origin);
  if (trusted && !trusted->empty()) trusted->Check(signatures, found, origin);
  Manifest::Parse(reinterpret_cast<const char*>(file.data) + head.table_end, head.manifest_end - head.table_end, origin + ": its manifest");
  TakeSections(file, head, origin);
}

// Sections follow each other at multiples of 64 bytes, padded with zeros, up to the end of the content. Initial states
// are present if some are not zero; assets (files stored with the module) are checked but not read here.
void Artifact::TakeSections(Span file, const Head& head, const std::string& origin) {
  std::vector<std::pair<const char*, Span*>> expected = {
      {"library", &library}, {"parameters", &parameters}, {"reference_in", &reference_inputs}, {"reference_out", &reference_outputs}};
  if (!initial_state_descriptions.empty()) expected.emplace_back("states", &initial_states);
  if (!asset_descriptions.empty()) expected.emplace_back("assets", &assets);
  std::string names;
  for (const auto& section : expected) names += (names.empty() ? "" : ", ") + std::string(section.first);
  names = "it must have the sections " + names;
  if (head.sections != expected.size() || checksums.size() != expected.size()) Damaged(origin, names);
  size_t position = head.manifest_end;
  for (size_t i = 0; i < expected.size(); ++i) {
    const uint8_t* entry = file.data + kHead + kEntry * i;
    const std::string section = expected[i].first;
    char name[kName] = {};
    std::strncpy(name, section.c_str(), kName);
    if (std::memcmp(entry, name, kName) != 0) Damaged(origin, names);
    uint64_t offset = Read<uint64_t>(entry + kName), size = Read<uint64_t>(entry + kName + 8);
    if (offset != Align(position) || offset > head.content_end || size > head.content_end - offset) {
      Damaged(origin, "section '" + section + "' is at a wrong offset");
    }
    if (!IsZero(file.data + position, file.data + offset)) {
      Damaged(origin, "the padding before section '" + section + "' is not zero");
    }
    *expected[i].second = {file.data + offset, static_cast<size_t>(size)};
    position = static_cast<size_t>(offset + size);
  }
  if (position != head.content_end) Damaged(origin, "its content has a wrong length");
  for (const auto& [section, place] : expected) {
    auto checksum = checksums.find(section);
    if (checksum == checksums.end() || Hex(TreeDigest(place->data, place->size)) != checksum->second) {
      Damaged(origin, "the checksum of its " + std::string(section) + " does not match");
    }
  }
}

}  // namespace tensorwright
