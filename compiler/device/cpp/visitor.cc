#include "visitor.h"

#include <sodium.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>

namespace tensorwright {
namespace {

constexpr int32_t kRpcMagic = 0xff271;  // RPC_MAGIC of tvm/rpc/base.py
constexpr int32_t kMaxRpcKey = 4096;
constexpr size_t kPreface = 8;
const char* const kPlain = "TWPLAIN2";
const char* const kNoise = "TWNOISE2";
const char* const kError = "TWERROR2";
const char* const kBusy = "all of the server's sessions are taken: try again later, or start it with a larger --sessions";
const char* const kNoKernels = "this server runs only signed modules, and kernels being tuned are not signed: start it with --allow-tuning while tuning";

struct Visit {
  int client;
  Wire wire;
  Clock::time_point end;        // deadline of the handshake
  bool rpc = false;             // a client of TVM's RPC, without frames
  std::string plain;            // received but not processed yet
};

// Reads what the client still sends: closing a socket with unread data would discard our response.
void Leave(const Visit& visit) {
  char byte;
  auto end = std::min(visit.end, Clock::now() + std::chrono::seconds(2));
  shutdown(visit.client, SHUT_WR);
  for (int i = 0; i < 4096 && ReadBy(end, visit.client, &byte, 1); ++i) {
  }
}

void Refuse(const Visit& visit, const std::string& reason) {
  std::string answer = kError;
  answer.push_back(static_cast<char>(reason.size() & 255));
  answer.push_back(static_cast<char>(reason.size() >> 8));
  answer += reason;
  WriteBy(visit.end, visit.client, answer.data(), answer.size());
  Leave(visit);
}

[[noreturn]] void Stop(const Visit& visit, const std::string& reason) {
  Refuse(visit, reason);
  throw Error(reason);
}

void Say(Visit* visit, const std::string& content) {
  std::string frame = Frame(content), sealed;
  visit->wire.Seal(frame.data(), frame.size(), &sealed);
  if (!WriteBy(visit->end, visit->client, sealed.data(), sealed.size())) throw Error("the client left in the handshake");
}

void ShakeHands(Visit* visit, const ServerSettings& settings) {
  uint8_t first[kFirstMessageBytes];
  if (!ReadBy(visit->end, visit->client, first, sizeof first)) throw Error("the client left in the handshake, or was silent");
  NoiseResponder responder(settings.key, kNoise);
  Key key;
  std::string answer = kNoise;
  if (!responder.ReadFirst(first, &key)) Stop(*visit, "the handshake failed: the client expects a server with another key");
  if (!settings.clients.count(key)) Stop(*visit, "the server does not know this client's key");
  if (!responder.WriteSecond(&answer)) Stop(*visit, "the handshake failed");
  visit->wire.Encrypt(&responder);
  if (!WriteBy(visit->end, visit->client, answer.data(), answer.size())) throw Error("the client left in the handshake");
}

// The first frame, by which a client of an encrypted connection proves its key.
SessionKind FirstFrame(Visit* visit) {
  std::string content;
  char byte;
  while (!TakeFrame(&visit->plain, kMaxRequest, &content)) {
    if (!ReadBy(visit->end, visit->client, &byte, 1)) throw Error("the client left in the handshake, or was silent");
    if (!visit->wire.Open(&byte, 1, &visit->plain)) throw Error("the client does not have the key that it named");
  }
  if (content == "modules") return SessionKind::kModules;
  if (content == "kernels") return SessionKind::kKernels;
  Say(visit, "error the request '" + content.substr(0, 64) + "' is not known");
  Leave(*visit);
  throw Error("a client of another version");
}

// The rest of the handshake of TVM's RPC.
void ShakeRpcHands(Visit* visit) {
  int32_t size = 0;
  char key[kMaxRpcKey];
  if (!ReadBy(visit->end, visit->client, &size, 4) || size < 0 || size > kMaxRpcKey || !ReadBy(visit->end, visit->client, key, static_cast<size_t>(size))) {
    throw Error("the client does not speak TVM's RPC protocol");
  }
}

void AnswerRpc(const Visit& visit, bool admitted) {
  // A server with another key: the response of TVM's servers that makes the client fail at once.
  int32_t answer[2] = {admitted ? kRpcMagic : kRpcMagic + 2, 7};
  WriteBy(visit.end, visit.client, answer, admitted ? 8 : 4);
  if (admitted) WriteBy(visit.end, visit.client, "server:", 7);
}

// Identifies the client and its request; throws Error if it is not permitted.
SessionKind Greet(Visit* visit, const ServerSettings& settings) {
  char preface[kPreface];
  if (!ReadBy(visit->end, visit->client, preface, 4)) throw Error("the client was silent");
  visit->rpc = std::memcmp(preface, &kRpcMagic, 4) == 0;
  if (!visit->rpc && !ReadBy(visit->end, visit->client, preface + 4, 4)) throw Error("the client was silent");
  if (visit->rpc) {
    ShakeRpcHands(visit);
    if (settings.encrypted || !settings.kernels_allowed) {
      AnswerRpc(*visit, false);
      Leave(*visit);
      throw Error("a client of TVM's RPC, which this server does not accept");
    }
    return SessionKind::kKernels;
  }
  if (std::memcmp(preface, kNoise, kPreface) == 0) {
    if (!settings.encrypted) Stop(*visit, "this server has no key (--key): it takes plain connections");
    ShakeHands(visit, settings);
  } else if (std::memcmp(preface, kPlain, kPreface) != 0) {
    throw Error("the client speaks another protocol");
  } else if (settings.encrypted) {
    Stop(*visit, "this server takes encrypted connections of clients that it knows: give this client's key and the server's (--key, --device-key)");
  }
  return FirstFrame(visit);
}

bool Admitted(int control, Clock::time_point end) {
  char answer = 'n';
  return WriteBy(end, control, "?", 1) && ReadBy(end, control, &answer, 1) && answer == 'y';
}

// The process of the session, and the socket to it. It ends with this process.
pid_t StartSession(Visit* visit, SessionKind kind, int control, const Storage& storage, ServerSettings* settings, int* descriptor) {
  std::string scratch = storage.MakeScratch(getpid());
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) throw Error(std::string("no socket for a session: ") + std::strerror(errno));
  pid_t parent = getpid(), child = fork();
  if (child < 0) throw Error(std::string("no process for a session: ") + std::strerror(errno));
  *descriptor = ends[0];
  if (child > 0) {
    close(ends[1]);
    return child;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  // A module's code has no access to keys and other connections here.
  close(ends[0]), close(visit->client), close(control);
  visit->wire.Forget();
  sodium_memzero(settings->key.data(), settings->key.size());
  try {
    if (kind == SessionKind::kModules) {
      ServeModules(ends[1], storage, scratch, settings->trusted, settings->session);
    } else {
      ServeKernels(ends[1], scratch, settings->session, settings->devices.problem.empty());
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  _exit(0);
}

void Visited(Visit* visit, int control, const Storage& storage, ServerSettings* settings) {
  SessionKind kind = Greet(visit, *settings);
  std::string reason = kind == SessionKind::kKernels && !settings->kernels_allowed ? kNoKernels : Admitted(control, visit->end) ? "" : kBusy;
  int session = -1, status = 0;
  pid_t child = -1;
  try {
    if (reason.empty()) child = StartSession(visit, kind, control, storage, settings, &session);
  } catch (const Error& error) {
    reason = error.what();
  }
  if (visit->rpc) AnswerRpc(*visit, reason.empty());
  if (!visit->rpc) Say(visit, reason.empty() ? "ok " + DescribeServer(settings->kernels_allowed, settings->devices) : "error " + reason);
  if (!reason.empty()) {
    Leave(*visit);
    throw Error(reason);
  }
  std::string ended = Pump(&visit->wire, visit->client, session, visit->plain, settings->times);
  close(session);
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  storage.RemoveScratch(getpid());  // before the client sees the connection close
  if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) ended = std::string("the session crashed (") + strsignal(WTERMSIG(status)) + ")";
  if (!ended.empty()) throw Error(ended);
}

}  // namespace

void ServeVisitor(int client, int control, const Storage& storage, ServerSettings* settings) {
  Visit visit{client, {}, Clock::now() + std::chrono::seconds(settings->handshake_seconds)};
  try {
    Visited(&visit, control, storage, settings);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  close(control);  // releases the session's slot before the client sees the connection close
  _exit(0);
}

}  // namespace tensorwright
