// The types of the documents in a module's file, and the check of a document against them.
#pragma once

#include <tvm/ffi/any.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace tensorwright {

// Message of older programs about an unknown member, whose meaning they would ignore.
constexpr char kUnknownMember[] = "this program does not know it: use the programs of the Tensorwright that wrote the file";

struct Member;

// The types that a value may have. The records of a module's files are written from Python's (record_schema.py).
struct Schema {
  // kAnything: not nested deeper than `kDeepest`. kDigest: 64 hexadecimal digits. kChoice: one of the members' keys.
  // kEither: one of the members. kList: items of the only member. kTuple: an item for each member. kMap: names and values.
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

// The place where a value does not fit ("" for itself; else names and indices joined by dots) and the reason; nothing where it does.
struct Misfit {
  std::string place, why;
};
std::optional<Misfit> FindMisfit(const tvm::ffi::Any& value, const Schema& schema);

}  // namespace tensorwright
