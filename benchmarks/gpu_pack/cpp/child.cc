#include "child.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "error.h"

namespace tensorwright::pack {
namespace {

constexpr size_t kMaxErrors = 4000;
constexpr int kSignalled = 128;

struct Pipe {
  int ends[2];
  Pipe() {
    if (pipe2(ends, O_CLOEXEC) != 0) throw Error(std::string("no pipe: ") + std::strerror(errno));
  }
  ~Pipe() {
    for (int end : ends) {
      if (end >= 0) close(end);
    }
  }
  void CloseWriter() {
    close(ends[1]);
    ends[1] = -1;
  }
};

[[noreturn]] void Become(const std::vector<std::string>& command, const Pipe& output, const Pipe& errors) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  dup2(output.ends[1], STDOUT_FILENO);
  dup2(errors.ends[1], STDERR_FILENO);
  std::vector<char*> words;
  for (const std::string& each : command) words.push_back(const_cast<char*>(each.c_str()));
  words.push_back(nullptr);
  execvp(words[0], words.data());
  _exit(127);
}

// Reads what a pipe holds now; false at its end.
bool Take(int descriptor, std::string* text) {
  char buffer[1 << 14];
  ssize_t count = read(descriptor, buffer, sizeof buffer);
  if (count < 0) return errno == EINTR;
  text->append(buffer, static_cast<size_t>(count));
  return count > 0;
}

void HandOn(std::string* text, const std::function<void(const std::string&)>& line) {
  for (size_t end; (end = text->find('\n')) != std::string::npos; text->erase(0, end + 1)) line(text->substr(0, end));
}

}  // namespace

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string Ended::Words() const {
  std::string text = late ? "its time was over" : status > kSignalled ? "signal " + std::to_string(status - kSignalled) + " (" + strsignal(status - kSignalled) + ")" : "exit status " + std::to_string(status);
  return errors.empty() ? text : text + ": " + errors;
}

Ended RunChild(const std::vector<std::string>& command, double seconds, const std::function<void(const std::string&)>& line) {
  Pipe output, errors;
  pid_t child = fork();
  if (child < 0) throw Error(std::string("no process: ") + std::strerror(errno));
  if (child == 0) Become(command, output, errors);
  output.CloseWriter(), errors.CloseWriter();
  Ended ended;
  std::string text;
  double deadline = Now() + seconds;
  pollfd watched[2] = {{output.ends[0], POLLIN, 0}, {errors.ends[0], POLLIN, 0}};
  while (watched[0].fd >= 0 || watched[1].fd >= 0) {
    double left = deadline - Now();
    if (left <= 0) {
      ended.late = true;
      break;
    }
    if (poll(watched, 2, static_cast<int>(left * 1e3) + 1) < 0 && errno != EINTR) break;
    if (watched[0].revents && !Take(watched[0].fd, &text)) watched[0].fd = -1;
    if (watched[1].revents && !Take(watched[1].fd, &ended.errors)) watched[1].fd = -1;
    if (ended.errors.size() > kMaxErrors) ended.errors.erase(0, ended.errors.size() - kMaxErrors);
    try {
      HandOn(&text, line);
    } catch (...) {
      kill(-child, SIGKILL);
      waitpid(child, nullptr, 0);
      throw;
    }
  }
  kill(-child, SIGKILL);  // what it started and left, and itself where it is late
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  ended.status = WIFSIGNALED(status) ? kSignalled + WTERMSIG(status) : WEXITSTATUS(status);
  while (!ended.errors.empty() && ended.errors.back() == '\n') ended.errors.pop_back();
  return ended;
}

}  // namespace tensorwright::pack
