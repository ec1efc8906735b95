// The folder of a device server: the active module, and a scratch folder for each session.
#pragma once

#include <string>

#include "artifact.h"
#include "signature.h"

namespace tensorwright {

class Storage {
 public:
  // Makes the folder (for its owner alone) where it is missing, and removes what sessions left in it. Throws Error.
  explicit Storage(std::string folder);

  const std::string& folder() const { return folder_; }

  // A scratch folder for the session of a process. Throws Error.
  std::string MakeScratch(int process) const;
  void RemoveScratch(int process) const;

  // The digest of the active module, "" where there is none. One that is damaged, or that trusted keys did not sign, is
  // moved aside, and `problem` says so. Throws Error where that is not possible.
  std::string Active(const TrustedKeys& trusted, std::string* problem) const;

  // Makes a file of a scratch folder the active module, whole or not at all. Throws Error.
  void Activate(const std::string& path) const;

 private:
  std::string ScratchOf(int process) const;

  std::string folder_;
};

// Makes a new file of this size, its space reserved. Throws Error, that of a full disk among them.
int CreateFile(const std::string& path, uint64_t size);

// Bytes of the files in a folder.
uint64_t BytesIn(const std::string& folder);

}  // namespace tensorwright
