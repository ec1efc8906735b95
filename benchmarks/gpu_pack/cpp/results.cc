#include "results.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "checked_json.h"
#include "file.h"

namespace tensorwright::pack {

Results::Results(const std::string& path, const std::string& pack) : path_(path), pack_(pack) {
  file_ = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file_ < 0) throw Error("the results cannot be written to " + path + ": " + std::strerror(errno), "set OUT to a folder that can be written");
  struct stat about;
  if (fstat(file_, &about) != 0 || !S_ISREG(about.st_mode)) throw Error("the results cannot be written to " + path + ": it is not a regular file");
  signal(SIGXFSZ, SIG_IGN);  // a limit of the size of files is an error of writing, not an end
  std::string content;
  char buffer[1 << 16];
  for (ssize_t count; (count = read(file_, buffer, sizeof buffer)) > 0;) content.append(buffer, static_cast<size_t>(count));
  size_t whole = content.rfind('\n') == std::string::npos ? 0 : content.rfind('\n') + 1;
  if (whole != content.size() && ftruncate(file_, static_cast<off_t>(whole)) != 0) throw Error(path + " cannot be cut: " + std::strerror(errno));
  for (size_t start = 0; start < whole;) {
    size_t end = content.find('\n', start);
    Take(content.substr(start, end - start));
    start = end + 1;
  }
}

void Results::Copy(const std::string& from, const std::string& to) {
  FileBytes content(from);
  std::ofstream file(to, std::ios::binary);
  file.write(reinterpret_cast<const char*>(content.span().data), static_cast<std::streamsize>(content.span().size));
  if (!file.flush()) throw Error("the results cannot be written to " + to + ": " + std::strerror(errno), "set OUT to a folder that can be written");
}

Results::~Results() {
  if (file_ >= 0) close(file_);
}

// Remembers what a line says of an entry, where it is of this pack.
void Results::Take(const std::string& line) {
  JsonValue value = JsonValue::Parse(line.data(), line.size(), path_);
  auto stage = value.Find("stage");
  if (!stage) value.Fail("it is not a line of results: move the file away");
  if (stage->Text() == "run") current_ = value["pack"].Text();
  if (current_ != pack_ || stage->Text() != "end") return;
  ended_.insert(value["entry"].Text());
  if (value["status"].Text() != "right") wrong_ = true;
}

void Results::Append(const std::string& line) {
  std::string text = line + "\n";
  off_t before = lseek(file_, 0, SEEK_END);
  for (size_t done = 0; done < text.size();) {
    ssize_t count = write(file_, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      std::string reason = std::strerror(errno);
      bool cut = ftruncate(file_, before) == 0;
      throw Error("the results cannot be written to " + path_ + ": " + reason + (cut ? "; what came before is whole" : ""), "free space there, or set OUT to another folder; run again to go on");
    }
    done += static_cast<size_t>(count);
  }
  if (fsync(file_) != 0 && errno != EINVAL) throw Error("the results cannot be written to " + path_ + ": " + std::strerror(errno), "free space there, or set OUT to another folder; run again to go on");
  Take(line);
}

}  // namespace tensorwright::pack
