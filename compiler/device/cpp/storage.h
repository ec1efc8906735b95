// The folder of a device server: the active module, and a scratch folder for each session.
#pragma once

#include <string>

#include "artifact.h"
#include "signature.h"

namespace tensorwright {

class Storage {
 public:
  // Creates the folder (only accessible to its owner) if it is missing, and removes leftovers of sessions. Throws
  // Error.
  explicit Storage(std::string folder);

  const std::string& folder() const { return folder_; }

  // Creates a scratch folder for the session of a process. Throws Error.
  std::string MakeScratch(int process) const;
  void RemoveScratch(int process) const;

  // The digest of the active module, "" if there is none. A damaged one, or one not signed by a trusted key, is moved
  // aside, which `problem` reports. Throws Error if that is not possible.
  std::string Active(const TrustedKeys& trusted, std::string* problem) const;

  // Makes a file in a scratch folder the active module, atomically. Throws Error.
  void Activate(const std::string& path) const;

 private:
  std::string ScratchOf(int process) const;

  std::string folder_;
};

// Creates a file of this size, with its space reserved. Throws Error, also for a full disk.
int CreateFile(const std::string& path, uint64_t size);

// Total bytes of the files in a folder.
uint64_t BytesIn(const std::string& folder);

}  // namespace tensorwright
