#include "device.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <map>

namespace stand_in {

std::recursive_mutex mutex;

namespace {

constexpr size_t kPage = 4096, kAlignment = 256;

struct Block {
  char* begin;
  size_t pages, bytes;
};

// Never destroyed: TVM frees its memory when the process ends.
std::map<void*, Block>& blocks = *new std::map<void*, Block>;
std::list<Stream*>& streams = *new std::list<Stream*>;
Stream default_stream;
size_t used = 0;
int touching = 0;

void Protect(const Block& block, int protection) {
  if (block.pages) mprotect(block.begin, block.pages * kPage, protection);
}

// Of other streams, what must be done before a stream's next work.
void FinishOthers(Stream* stream) {
  if (stream != &default_stream) {
    if (stream->blocking) Finish(&default_stream);
    return;
  }
  for (Stream* each : streams) {
    if (each->blocking) Finish(each);
  }
}

}  // namespace

int64_t Setting(const char* name, int64_t otherwise) {
  const char* text = getenv(name);
  return text ? std::atoll(text) : otherwise;
}

void Log(const std::string& line) {
  const char* path = getenv("STAND_IN_LOG");
  FILE* file = path ? std::fopen(path, "a") : nullptr;
  if (!file) return;
  std::fprintf(file, "%s\n", line.c_str());
  std::fclose(file);
}

size_t TotalBytes() { return static_cast<size_t>(Setting("STAND_IN_MEMORY", 64 << 20)); }
size_t FreeBytes() { return TotalBytes() - used; }

void* Allocate(size_t bytes) {
  if (bytes > FreeBytes()) return nullptr;
  size_t whole = (bytes + kAlignment - 1) / kAlignment * kAlignment, pages = (whole + kPage - 1) / kPage;
  char* begin = static_cast<char*>(mmap(nullptr, (pages + 1) * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  char* data = begin + pages * kPage - whole;
  blocks[data] = {begin, pages, bytes};
  used += bytes;
  return data;
}

bool Free(void* memory) {
  auto found = blocks.find(memory);
  if (found == blocks.end()) return false;
  munmap(found->second.begin, (found->second.pages + 1) * kPage);
  used -= found->second.bytes;
  blocks.erase(found);
  return true;
}

bool IsOnDevice(const void* memory, size_t bytes) {
  auto after = blocks.upper_bound(const_cast<void*>(memory));
  if (after == blocks.begin()) return false;
  const auto& [start, block] = *std::prev(after);
  return static_cast<const char*>(memory) + bytes <= static_cast<const char*>(start) + block.bytes;
}

void Touching(const Work& work) {
  if (touching++ == 0) {
    for (const auto& [data, block] : blocks) Protect(block, PROT_READ | PROT_WRITE);
  }
  work();
  if (--touching == 0) {
    for (const auto& [data, block] : blocks) Protect(block, PROT_NONE);
  }
}

Stream* StreamOf(void* handle) { return handle ? static_cast<Stream*>(handle) : &default_stream; }

Stream* NewStream(bool blocking) {
  auto* stream = new Stream;
  stream->blocking = blocking;
  streams.push_back(stream);
  return stream;
}

void DeleteStream(Stream* stream) {
  Finish(stream);
  streams.remove(stream);
  delete stream;
}

bool Enqueue(Stream* stream, Work work) {
  if (stream->capturing) {
    stream->capturing->work.push_back(std::move(work));
    return true;
  }
  for (Stream* each : streams) {
    if (stream == &default_stream && each->capturing && each->blocking) {
      each->capturing->broken = true;  // the default stream would wait for it
      return false;
    }
  }
  FinishOthers(stream);
  stream->work.push_back(std::move(work));
  return true;
}

void Finish(Stream* stream) {
  while (!stream->work.empty()) {
    Work next = std::move(stream->work.front());
    stream->work.pop_front();
    next();
  }
}

void FinishAll() {
  Finish(&default_stream);
  for (Stream* each : streams) Finish(each);
}

bool BreaksCapture() {
  bool breaks = false;
  for (Stream* each : streams) {
    if (each->capturing) each->capturing->broken = breaks = true;
  }
  return breaks;
}

}  // namespace stand_in
