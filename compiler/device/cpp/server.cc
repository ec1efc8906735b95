// A device server:  tensorwright-server PORT [--listen ADDRESS] [--folder FOLDER] [--key FILE --client-key PATH...] ...
//
// Keeps one active module in FOLDER. A new one becomes active only after its checksums, its signature if keys are
// trusted, and its reference run were checked (`tensorwright push`); until then, and if anything fails, the old one
// stays.
//
// Anyone who may open a session can run code here, within the limits of --trusted-key. With --key every connection is
// encrypted, and clients are authenticated by their keys; without, everyone who can reach the port is let in, so the
// server then only listens on a loopback address unless --insecure is given.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sodium.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#include "device.h"
#include "error.h"
#include "visitor.h"
#include "whole_number.h"

namespace tensorwright {
namespace {

constexpr size_t kMaxPending = 32;  // clients not yet authenticated; the oldest is dropped for a new one

const char* const kUsage =
    "usage: tensorwright-server PORT [OPTION]...   (port 0: any free one)\n"
    "       tensorwright-server --new-key FILE     makes a key for --key, and FILE.pub for the clients' --device-key\n"
    "  --listen ADDRESS         an IPv4 address (127.0.0.1)\n"
    "  --folder FOLDER          where modules are kept (tensorwright-device)\n"
    "  --key FILE               this server's X25519 private key: connections are encrypted\n"
    "  --client-key PATH        the public key of a client that may connect, or a folder of them; again for more\n"
    "  --trusted-key PATH       an Ed25519 public key, or a folder of them: modules must be signed by one; again for more\n"
    "  --allow-tuning           with --trusted-key: run kernels for `tensorwright tune` too, which are not signed\n"
    "  --insecure               accept everyone on an address that is not loopback\n"
    "  --sessions N             at once (8)\n"
    "  --idle SECONDS           that a client may keep a session without using it (900)\n"
    "  --longest-run SECONDS    that one request may take (3600)\n"
    "  --max-module-bytes N     of a module, and of a session's files together (4294967296)\n";

struct Options {
  int port = -1;
  std::string address = "127.0.0.1", folder = "tensorwright-device", key, new_key;
  std::vector<std::string> client_keys;
  bool allow_tuning = false, insecure = false;
  size_t sessions = 8;
  ServerSettings settings;
};

// A number on the command line, from 1 to `most`.
uint64_t Positive(const std::string& text, uint64_t most) {
  uint64_t value = WholeNumber(text, most);
  if (value == 0) throw Error("'" + text + "' is not a number from 1 to " + std::to_string(most));
  return value;
}

bool ParseOptions(int count, char** arguments, Options* options) {
  ServerSettings& settings = options->settings;
  const std::map<std::string, std::function<void(const std::string&)>> valued = {
      {"--listen", [&](const std::string& value) { options->address = value; }},
      {"--folder", [&](const std::string& value) { options->folder = value; }},
      {"--key", [&](const std::string& value) { options->key = value; }},
      {"--new-key", [&](const std::string& value) { options->new_key = value; }},
      {"--client-key", [&](const std::string& value) { options->client_keys.push_back(value); }},
      {"--trusted-key", [&](const std::string& value) { settings.trusted.Add(value); }},
      {"--sessions", [&](const std::string& value) { options->sessions = Positive(value, 1024); }},
      {"--idle", [&](const std::string& value) { settings.times.idle_seconds = settings.session.idle_seconds = static_cast<int>(Positive(value, 1'000'000)); }},
      {"--longest-run", [&](const std::string& value) { settings.times.run_seconds = static_cast<int>(Positive(value, 1'000'000)); }},
      {"--max-module-bytes", [&](const std::string& value) { settings.session.module_bytes = Positive(value, uint64_t{1} << 50); }},
  };
  for (int i = 1; i < count; ++i) {
    std::string argument = arguments[i];
    auto found = valued.find(argument);
    if (found != valued.end() && i + 1 < count) {
      found->second(arguments[++i]);
    } else if (argument == "--allow-tuning") {
      options->allow_tuning = true;
    } else if (argument == "--insecure") {
      options->insecure = true;
    } else if (options->port < 0 && argument.size() < 6 && argument.find_first_not_of("0123456789") == std::string::npos && !argument.empty()) {
      options->port = static_cast<int>(WholeNumber(argument));
    } else {
      return false;
    }
  }
  return !options->new_key.empty() || (options->port >= 0 && options->port <= 65535);
}

bool IsLoopback(const std::string& address) { return address.compare(0, 4, "127.") == 0; }

// Checks the keys, and that any access they do not restrict was requested explicitly.
void Configure(Options* options) {
  ServerSettings& settings = options->settings;
  if (options->key.empty() != options->client_keys.empty()) {
    throw Error("--key, this server's private key, and --client-key, the public keys of its clients, go together");
  }
  if (!options->key.empty()) {
    settings.encrypted = true;
    settings.key = ReadPrivateKey(options->key);
    for (const std::string& path : options->client_keys) {
      for (const Key& key : ReadPublicKeys(path, KeyKind::kX25519)) settings.clients.insert(key);
    }
  } else if (!IsLoopback(options->address) && !options->insecure) {
    throw Error("without keys everyone who can connect to " + options->address + " could run code here. Make keys (tensorwright-server --new-key device.pem "
                "here, tensorwright key new laptop.pem --kind connection there) and start it with --key device.pem --client-key laptop.pem.pub; "
                "or listen on 127.0.0.1; or, where nobody else reaches the port, add --insecure");
  }
  settings.kernels_allowed = settings.trusted.empty() || options->allow_tuning;
}

int Listen(const Options& options, const std::string& folder) {
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  sockaddr_in place{};
  place.sin_family = AF_INET, place.sin_port = htons(static_cast<uint16_t>(options.port));
  if (inet_pton(AF_INET, options.address.c_str(), &place.sin_addr) != 1) throw Error(options.address + " is not an IPv4 address");
  socklen_t size = sizeof place;
  if (bind(listener, reinterpret_cast<sockaddr*>(&place), size) != 0 || listen(listener, 64) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&place), &size) != 0) {
    throw Error(std::string("cannot listen: ") + std::strerror(errno));
  }
  std::printf("listening on %s:%d, modules in %s, %s, %s\n", options.address.c_str(), ntohs(place.sin_port), folder.c_str(),
              options.settings.encrypted ? "encrypted" : "open to everyone who can connect", options.settings.trusted.empty() ? "unsigned modules run" : "only signed modules run");
  std::fflush(stdout);
  return listener;
}

// Detects unreachable hosts by keepalive probes: after 5 s of silence one every 5 s, at most three unanswered.
void SetSocketLimits(int client) {
  int on = 1, idle = 5, interval = 5, probes = 3, unanswered = 20'000;
  setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(client, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(client, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(client, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(client, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  setsockopt(client, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered, sizeof unanswered);
}

// The current clients, one process each.
class Visitors {
 public:
  Visitors(int listener, const Storage& storage, Options* options) : listener_(listener), storage_(storage), options_(options) {}

  void ServeForever() {
    for (;;) {
      std::vector<pollfd> wait{{listener_, POLLIN, 0}};
      for (const Visitor& each : visitors_) wait.push_back({each.control, POLLIN, 0});
      if (poll(wait.data(), wait.size(), -1) <= 0) continue;
      AnswerAll();
      if (wait[0].revents) Accept();
    }
  }

 private:
  struct Visitor {
    pid_t process;
    int control;
    bool admitted;
  };

  // Removes the clients that have left, then gives their slots to waiting ones.
  void AnswerAll() {
    std::vector<int> asking;
    for (size_t i = visitors_.size(); i-- > 0;) {
      char question;
      ssize_t count = recv(visitors_[i].control, &question, 1, MSG_DONTWAIT);
      if (count == 1) asking.push_back(visitors_[i].control);
      if (count == 0) End(i);
    }
    for (Visitor& visitor : visitors_) {
      if (std::find(asking.begin(), asking.end(), visitor.control) == asking.end()) continue;
      auto admitted = std::count_if(visitors_.begin(), visitors_.end(), [](const Visitor& each) { return each.admitted; });
      visitor.admitted = static_cast<size_t>(admitted) < options_->sessions;
      send(visitor.control, visitor.admitted ? "y" : "n", 1, MSG_NOSIGNAL);
    }
  }

  void End(size_t index) {
    Visitor visitor = visitors_[index];
    visitors_.erase(visitors_.begin() + static_cast<ptrdiff_t>(index));
    close(visitor.control);
    kill(visitor.process, SIGKILL);
    waitpid(visitor.process, nullptr, 0);
    storage_.RemoveScratch(visitor.process);
  }

  void Accept() {
    int client = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC), ends[2];
    if (client < 0) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) usleep(100'000);  // until others have left
      return;
    }
    MakeRoom();
    SetSocketLimits(client);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      close(client);
      return;
    }
    pid_t server = getpid(), child = fork();
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != server) _exit(1);
      close(listener_), close(ends[0]);
      for (const Visitor& each : visitors_) close(each.control);
      ServeVisitor(client, ends[1], storage_, &options_->settings);
    }
    close(ends[1]), close(client);
    if (child < 0) {
      std::fprintf(stderr, "error: no process for a client: %s\n", std::strerror(errno));
      close(ends[0]);
    } else {
      visitors_.push_back({child, ends[0], false});
    }
  }

  // A client that connects and stays silent does not block others.
  void MakeRoom() {
    auto pending = [](const Visitor& each) { return !each.admitted; };
    if (static_cast<size_t>(std::count_if(visitors_.begin(), visitors_.end(), pending)) < kMaxPending) return;
    End(static_cast<size_t>(std::find_if(visitors_.begin(), visitors_.end(), pending) - visitors_.begin()));
  }

  int listener_;
  const Storage& storage_;
  Options* options_;
  std::vector<Visitor> visitors_;
};

int Main(int count, char** arguments) {
  Options options;
  if (!ParseOptions(count, arguments, &options)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  if (!options.new_key.empty()) {
    WriteNewKey(options.new_key);
    std::printf("wrote %s (keep it here) and %s.pub (give it to the clients)\n", options.new_key.c_str(), options.new_key.c_str());
    return 0;
  }
  Configure(&options);
  std::signal(SIGPIPE, SIG_IGN);
  Storage storage(options.folder);
  std::string problem;
  storage.Active(options.settings.trusted, &problem);
  if (!problem.empty()) std::fprintf(stderr, "warning: %s\n", Printable(problem).c_str());
  options.settings.devices = DescribeDevices();
  Visitors(Listen(options, storage.folder()), storage, &options).ServeForever();
  return 0;
}

}  // namespace
}  // namespace tensorwright

int main(int count, char** arguments) {
  try {
    return tensorwright::Main(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", tensorwright::Printable(error.what()).c_str());
    return 1;
  }
}
