// A module file (.twm) in memory, verified. The format is documented in the container of the Python package.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "file.h"
#include "manifest.h"

namespace tensorwright {

// The supported version of the format.
constexpr uint32_t kFormatVersion = 1;

class TrustedKeys;

class Artifact : public Manifest {
 public:
  // Throws Error unless it is a complete module file whose checksums all match. With trusted keys (none if null or
  // empty) it must have a valid signature by one of them.
  static std::shared_ptr<Artifact> Open(const std::string& path, const TrustedKeys* trusted = nullptr);
  static std::shared_ptr<Artifact> FromMemory(Span file, const std::string& origin, const TrustedKeys* trusted = nullptr);

  std::string digest;  // of the header, which has the digests of all sections
  Span library, parameters, reference_inputs, reference_outputs, initial_states, assets;

  // True if it owns its bytes; those of `FromMemory` belong to the caller.
  bool OwnsBytes() const { return file_.has_value(); }

  // Releases the memory of a parameter that is now read from elsewhere, if it is in the file's buffer. No other module
  // can be created from the artifact afterwards.
  void Forget(const void* data, size_t size);

  Artifact(const Artifact&) = delete;

 private:
  struct Head;

  Artifact() = default;
  void Parse(Span file, const std::string& origin, const TrustedKeys* trusted);
  void TakeSections(Span file, const Head& head, const std::string& origin);

  std::optional<FileBytes> file_;
};

}  // namespace tensorwright
