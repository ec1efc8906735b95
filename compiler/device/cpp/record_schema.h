// The types of the documents in a module's file, and a check of documents against them.
#pragma once

#include <tvm/ffi/any.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace tensorwright {

// Message for an unknown member, whose meaning this program would ignore.
constexpr char kUnknownMember[] = "this program does not know it: use the programs of the Tensorwright that wrote the file";

struct Member;

// The types that a value may have. The schemas of a module's documents are generated from Python's (record_schema.py).
struct Schema {
  // kAnything: nested at most `kDeepest` deep. kDigest: 64 hexadecimal digits. kChoice: one of the members' keys.
  // kEither: one of the members. kList: items of the only member. kTuple: an item for each member. kMap: names and
  // values.
  enum class Kind { kAnything, kNull, kTruth, kWhole, kNumber, kText, kDigest, kChoice, kEither, kList, kTuple, kMap, kRecord };
  Kind kind;
  int64_t least, most;  // numbers; characters of texts; items of lists
  const Member* members;
  size_t count;
};

struct Member {
  const char* key;
  const Schema* schema;
  bool required;
};

extern const Schema &kManifestSchema, &kDeviceSchema, &kTensorEntrySchema;

// The path of an invalid value ("" for the document itself; otherwise names and indices joined by dots) and the reason;
// empty if it is valid.
struct Misfit {
  std::string place, why;
};
std::optional<Misfit> FindMisfit(const tvm::ffi::Any& value, const Schema& schema);

}  // namespace tensorwright
