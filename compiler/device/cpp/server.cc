// A device server:  tensorwright-server PORT [--listen ADDRESS] [--folder FOLDER]
//
// Speaks TVM's RPC protocol, so that TVM's clients can upload and time kernels too, and keeps one active module in FOLDER.
// A new module becomes active only after its checksums, its reference run and its times were asked for by the client
// (`tensorwright push`); until then, and if anything fails, the old one stays.
// Whoever can connect can run code here. So it listens on 127.0.0.1 unless told otherwise; use a private network or a tunnel.
#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <tvm/ffi/reflection/registry.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "module.h"
#include "processor.h"

namespace tensorwright {
namespace {

constexpr int32_t kMagic = 0xff271;  // RPC_MAGIC of tvm/rpc/base.py
constexpr int32_t kLongestKey = 4096;
const char* const kActive = "active.twm";
const char* const kIncoming = "incoming-";  // what names of modules that did not prove themselves yet start with
std::string folder = "tensorwright-device";

// A file of the server's folder; names that lead elsewhere are refused.
std::string PathOf(const std::string& name) {
  if (name.empty() || name[0] == '.' || name.find('/') != std::string::npos) throw Error("'" + name + "' is not a plain file name");
  return folder + "/" + name;
}

void Append(const ffi::String& name, const ffi::Bytes& data, bool first) {
  std::FILE* file = std::fopen(PathOf(name).c_str(), first ? "wb" : "ab");
  if (!file) throw Error(PathOf(name) + ": " + std::strerror(errno));
  bool whole = std::fwrite(data.data(), 1, data.size(), file) == data.size();
  if (std::fclose(file) != 0 || !whole) throw Error(PathOf(name) + " could not be written: " + std::strerror(errno));
}

// The module of this session: loaded once, for its reference run and its times.
Module& Loaded(const std::string& name) {
  static std::string loaded;
  static std::unique_ptr<Module> module;
  if (loaded != name) {
    module = std::make_unique<Module>(Artifact::Open(PathOf(name)));
    loaded = name;
  }
  return *module;
}

ffi::String DigestOf(const std::string& name) { return Artifact::Open(PathOf(name))->digest; }

// Two numbers as text: arrays stay on this side of the protocol.
ffi::String Measure(const ffi::String& name, int64_t runs) {
  Module& module = Loaded(name);
  std::vector<double> times = module.Measure(module.ExampleInputs(), static_cast<int>(runs), 1);
  return std::to_string(Percentile(times, 0.5)) + " " + std::to_string(Percentile(times, 0.99));
}

void Activate(const ffi::String& name) {
  sync();  // what is renamed must be on the disk before, or a loss of power leaves an empty file
  if (std::rename(PathOf(name).c_str(), PathOf(kActive).c_str()) != 0) throw Error(std::string("the module could not be switched: ") + std::strerror(errno));
  sync();
}

void Remove(const ffi::String& name) { std::remove(PathOf(name).c_str()); }

// What this server is, as JSON, for clients of any version: `protocol` counts up when a function here changes its meaning.
constexpr int kProtocol = 1;

ffi::String Versions() {
  std::string features;
  for (const std::string& each : ProcessorFeatures()) features += (features.empty() ? "\"" : ", \"") + each + "\"";
  return std::string("{\"protocol\": ") + std::to_string(kProtocol) + ", \"format\": " + std::to_string(kFormatVersion) +
         ", \"tensorwright\": \"" TENSORWRIGHT_VERSION "\", \"tvm\": \"" TENSORWRIGHT_ENGINE "\", \"architecture\": \"" + Architecture() +
         "\", \"features\": [" + features + "]}";
}

ffi::String Active() { return access(PathOf(kActive).c_str(), R_OK) == 0 ? DigestOf(kActive) : ffi::String(""); }

void RegisterFunctions() {
  tvm::ffi::reflection::GlobalDef()
      .def("tensorwright.device.versions", Versions)
      .def("tensorwright.device.append", Append)
      .def("tensorwright.device.digest", [](const ffi::String& name) { return DigestOf(name); })
      .def("tensorwright.device.verify", [](const ffi::String& name) { return Loaded(name).Verify(); })
      .def("tensorwright.device.measure", Measure)
      .def("tensorwright.device.activate", Activate)
      .def("tensorwright.device.remove", Remove)
      .def("tensorwright.device.active", Active)
      // What TVM's own clients expect.
      .def("tvm.rpc.server.workpath", [](const ffi::String& name) { return ffi::String(PathOf(name)); })
      .def("tvm.rpc.server.load_module", [](const ffi::String& name) { return ffi::Module::LoadFromFile(PathOf(name)); });
}

bool Receive(int socket, void* data, size_t size) { return recv(socket, data, size, MSG_WAITALL) == static_cast<ssize_t>(size); }

bool Send(int socket, const void* data, size_t size) { return send(socket, data, size, MSG_NOSIGNAL) == static_cast<ssize_t>(size); }

bool ShakeHands(int socket) {
  int32_t magic = 0, size = 0;
  if (!Receive(socket, &magic, 4) || magic != kMagic || !Receive(socket, &size, 4) || size < 0 || size > kLongestKey) return false;
  std::string client(static_cast<size_t>(size), '\0');
  if (!Receive(socket, client.data(), client.size())) return false;
  const std::string key = "server:";
  size = static_cast<int32_t>(key.size());
  return Send(socket, &kMagic, 4) && Send(socket, &size, 4) && Send(socket, key.data(), key.size());
}

// In a process of its own, so that a module that crashes ends its session and nothing else.
void Serve(int socket) {
  pid_t child = fork();
  if (child == 0) {
    try {
      (*ffi::Function::GetGlobal("rpc.ServerLoop"))(socket);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "error: %s\n", error.what());
    }
    _exit(0);
  }
  int status = 0;
  if (child > 0) waitpid(child, &status, 0);
  if (child < 0 || !WIFEXITED(status)) std::fprintf(stderr, "error: a session crashed\n");
}

// What a session that was cut off left behind. There is one session at a time.
void RemoveIncoming() {
  DIR* listing = opendir(folder.c_str());
  if (!listing) return;
  while (dirent* entry = readdir(listing)) {
    if (std::strncmp(entry->d_name, kIncoming, std::strlen(kIncoming)) == 0) std::remove((folder + "/" + entry->d_name).c_str());
  }
  closedir(listing);
}

int Listen(const char* address, int port) {
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in place{};
  place.sin_family = AF_INET, place.sin_port = htons(static_cast<uint16_t>(port));
  if (inet_pton(AF_INET, address, &place.sin_addr) != 1) throw Error(std::string(address) + " is not an IPv4 address");
  socklen_t size = sizeof place;
  if (bind(listener, reinterpret_cast<sockaddr*>(&place), size) != 0 || listen(listener, 8) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&place), &size) != 0) {
    throw Error(std::string("can not listen: ") + std::strerror(errno));
  }
  std::printf("listening on %s:%d, modules in %s\n", address, ntohs(place.sin_port), folder.c_str());
  std::fflush(stdout);
  return listener;
}

int Main(int count, char** arguments) {
  const char* address = "127.0.0.1";
  int port = -1;
  for (int i = 1; i < count; ++i) {
    std::string argument = arguments[i];
    if (argument == "--listen" && i + 1 < count) {
      address = arguments[++i];
    } else if (argument == "--folder" && i + 1 < count) {
      folder = arguments[++i];
    } else {
      port = std::atoi(arguments[i]);
    }
  }
  if (port < 0 || port > 65535) {
    std::fprintf(stderr, "usage: tensorwright-server PORT [--listen ADDRESS] [--folder FOLDER]   (port 0: any free one)\n");
    return 2;
  }
  if (mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) throw Error(folder + ": " + std::strerror(errno));
  RemoveIncoming();
  RegisterFunctions();
  int listener = Listen(address, port), on = 1;
  for (;;) {
    int client = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (ShakeHands(client)) Serve(client);
    close(client);
    RemoveIncoming();
  }
}

}  // namespace
}  // namespace tensorwright

int main(int count, char** arguments) {
  try {
    return tensorwright::Main(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
