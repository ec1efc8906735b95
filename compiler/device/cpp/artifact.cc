#include "artifact.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>

#include "sha256.h"
#include "signature.h"

namespace tensorwright {
namespace {

namespace json = tvm::ffi::json;

constexpr size_t kPrefix = 32, kHead = 64, kEntry = 32;
constexpr char kMagic[9] = "\x89TWM\r\n\x1a\n";

template <typename T>
T Read(const uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

[[noreturn]] void Damaged(const std::string& origin, const std::string& what) {
  throw Error(origin + " is damaged: " + what);
}

json::Object Object(const json::Object& parent, const char* key) { return parent.at(ffi::String(key)).cast<json::Object>(); }

std::string Text(const json::Object& parent, const char* key) { return parent.at(ffi::String(key)).cast<ffi::String>(); }

double Number(const ffi::Any& value) {
  if (auto whole = value.as<int64_t>()) return static_cast<double>(*whole);
  return value.cast<double>();
}

std::vector<Description> Descriptions(const json::Object& manifest, const char* key) {
  std::vector<Description> result;
  for (const ffi::Any& item : manifest.at(ffi::String(key)).cast<json::Array>()) {
    json::Object object = item.cast<json::Object>();
    Description description{Text(object, "name"), Text(object, "dtype"), {}, {}};
    auto carrier = object.count(ffi::String("carrier")) ? object.at(ffi::String("carrier")).as<ffi::String>() : std::nullopt;
    description.dtype = ffi::StringToDLDataType(carrier ? std::string(*carrier) : description.dtype_name);
    for (const ffi::Any& size : object.at(ffi::String("shape")).cast<json::Array>()) {
      auto number = size.as<int64_t>();
      description.shape.push_back(number ? *number : -1);
    }
    result.push_back(std::move(description));
  }
  return result;
}

// A file in memory of this process alone; MAP_FAILED where it can not be read whole.
void* ReadWhole(int descriptor, size_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return memory;
  for (size_t done = 0; done < size;) {
    ssize_t count = read(descriptor, static_cast<char*>(memory) + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      munmap(memory, size);
      return MAP_FAILED;
    }
    done += static_cast<size_t>(count);
  }
  return memory;
}

}  // namespace

std::shared_ptr<Artifact> Artifact::Open(const std::string& path, const TrustedKeys* trusted) {
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw Error(path + ": " + std::strerror(errno));
  struct stat status;
  void* memory = MAP_FAILED;
  if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
    memory = trusted && !trusted->empty() ? ReadWhole(descriptor, static_cast<size_t>(status.st_size))
                                          : mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  }
  close(descriptor);
  if (memory == MAP_FAILED) throw Error(path + " can not be read");
  std::shared_ptr<Artifact> artifact(new Artifact());
  artifact->file_ = {static_cast<const uint8_t*>(memory), static_cast<size_t>(status.st_size)};
  artifact->mapped_ = true;
  artifact->Parse(path, trusted);
  return artifact;
}

std::shared_ptr<Artifact> Artifact::FromMemory(Span file, const std::string& origin, const TrustedKeys* trusted) {
  std::shared_ptr<Artifact> artifact(new Artifact());
  artifact->file_ = file;
  artifact->Parse(origin, trusted);
  return artifact;
}

Artifact::~Artifact() {
  if (mapped_) munmap(const_cast<uint8_t*>(file_.data), file_.size);
}

void Artifact::Parse(const std::string& origin, const TrustedKeys* trusted) {
  const uint8_t* data = file_.data;
  if (file_.size < kHead || std::memcmp(data, kMagic, 8) != 0) throw Error(origin + " is not a module file");
  uint32_t version = Read<uint32_t>(data + 8);
  if (version > kFormatVersion) {
    throw Error(origin + " has format version " + std::to_string(version) + ", and this program reads up to " + std::to_string(kFormatVersion) +
                ": bundle it again, and use the programs of that bundle");
  }
  size_t count = Read<uint16_t>(data + 12);
  uint64_t manifest_bytes = Read<uint64_t>(data + 16), content_bytes = Read<uint64_t>(data + 24);
  size_t table_end = kHead + kEntry * count;
  if (count > 16 || table_end > file_.size || manifest_bytes > file_.size - table_end || content_bytes > file_.size) {
    Damaged(origin, "it is cut off");
  }
  Sha256 head;
  head.Update(data, kPrefix);
  head.Update(data + kHead, table_end - kHead + manifest_bytes);
  Digest found = head.Finish();
  if (std::memcmp(found.data(), data + kPrefix, found.size()) != 0) Damaged(origin, "the checksum of its head does not match");
  digest = Hex(found);
  std::vector<Signature> signatures = ParseSignatures({data + content_bytes, file_.size - static_cast<size_t>(content_bytes)}, origin);
  if (trusted && !trusted->empty()) trusted->Check(signatures, found, origin);
  std::string text(reinterpret_cast<const char*>(data) + table_end, manifest_bytes);
  ffi::String problem;
  json::Value parsed = json::Parse(text, &problem);
  if (!problem.empty()) Damaged(origin, "its manifest is not JSON");
  std::map<std::string, Span> sections;
  json::Object checksums = Object(parsed.cast<json::Object>(), "checksums");
  for (size_t i = 0; i < count; ++i) {
    const uint8_t* entry = data + kHead + kEntry * i;
    std::string name(reinterpret_cast<const char*>(entry), strnlen(reinterpret_cast<const char*>(entry), 16));
    uint64_t offset = Read<uint64_t>(entry + 16), size = Read<uint64_t>(entry + 24);
    if (offset > content_bytes || size > content_bytes - offset) Damaged(origin, "section " + name + " is not where it must be");
    if (Hex(TreeDigest(data + offset, size)) != Text(checksums, name.c_str())) {
      Damaged(origin, "the checksum of its " + name + " does not match");
    }
    sections[name] = {data + offset, static_cast<size_t>(size)};
  }
  library = sections["library"], parameters = sections["parameters"];
  reference_inputs = sections["reference_in"], reference_outputs = sections["reference_out"];
  ParseManifest(text);
}

void Artifact::ParseManifest(const std::string& text) {
  json::Object manifest = json::Parse(text).cast<json::Object>();
  model_name = Text(manifest, "model_name");
  json::Object target = Object(manifest, "target");
  architecture = Text(target, "architecture"), target_name = Text(target, "name");
  for (const ffi::Any& feature : target.at(ffi::String("required_cpu_features")).cast<json::Array>()) {
    required_features.push_back(feature.cast<ffi::String>());
  }
  engine = Text(Object(manifest, "versions"), "tvm");
  inputs = Descriptions(manifest, "inputs"), outputs = Descriptions(manifest, "outputs");
  parameter_descriptions = Descriptions(manifest, "parameters");
  reference_input_descriptions = Descriptions(manifest, "reference_inputs");
  reference_output_descriptions = Descriptions(manifest, "reference_outputs");
  if (auto setting = manifest.at(ffi::String("threads")).as<int64_t>()) threads = static_cast<int>(*setting);
  if (manifest.count(ffi::String("compact_parameters"))) {
    compact_parameters = static_cast<size_t>(manifest.at(ffi::String("compact_parameters")).cast<int64_t>());
  }
  json::Object tolerance = Object(manifest, "reference_tolerance");
  relative_tolerance = Number(tolerance.at(ffi::String("relative")));
  absolute_tolerance = Number(tolerance.at(ffi::String("absolute")));
}

}  // namespace tensorwright
