#include "usable_cores.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "whole_number.h"

namespace tensorwright {
namespace {

// Speed of an efficiency core of x86, relative to a performance core.
constexpr double kEfficiencySpeed = 0.5;
constexpr uint64_t kMaxProcessors = 1 << 16;

// The first line of a file; "" if it cannot be read.
std::string LineOf(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

bool IsNumber(const std::string& text) {
  return !text.empty() && text.size() < 16 && std::all_of(text.begin(), text.end(), [](char each) { return each >= '0' && each <= '9'; });
}

std::vector<int> Affinity() {
  std::vector<int> numbers;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &allowed)) numbers.push_back(i);
    }
  } else {
    for (int i = 0; i < sysconf(_SC_NPROCESSORS_ONLN); ++i) numbers.push_back(i);
  }
  if (numbers.empty()) numbers.push_back(0);
  return numbers;
}

// The numbers in a list in Linux notation ("0-3,8").
std::set<int> NumbersIn(const std::string& list) {
  std::set<int> numbers;
  std::istringstream parts(list);
  for (std::string part; std::getline(parts, part, ',');) {
    size_t dash = part.find('-');
    std::string first = part.substr(0, dash), last = dash == std::string::npos ? first : part.substr(dash + 1);
    if (!IsNumber(first) || !IsNumber(last)) return {};
    for (uint64_t i = WholeNumber(first, kMaxProcessors); i <= WholeNumber(last, kMaxProcessors); ++i) {
      numbers.insert(static_cast<int>(i));
    }
  }
  return numbers;
}

// Processors granted by a control group of version 2 or 1; infinite without a limit.
double QuotaOf(const std::string& group) {
  std::string limit, period;
  std::istringstream both(LineOf(group + "/cpu.max"));
  if (!(both >> limit >> period)) {
    limit = LineOf(group + "/cpu.cfs_quota_us");
    period = LineOf(group + "/cpu.cfs_period_us");
  }
  if (!IsNumber(limit) || !IsNumber(period) || std::atof(period.c_str()) == 0) return INFINITY;
  return std::atof(limit.c_str()) / std::atof(period.c_str());
}

// The smallest quota of the control groups of this process and the enclosing ones. In a container, the path in /proc
// may exist only on the host; the root of the hierarchy is then its own group.
double Quota(const std::string& root) {
  const std::string mounted = root + "sys/fs/cgroup";
  double least = INFINITY;
  for (const char* own : {"", "/cpu", "/cpu,cpuacct"}) least = std::min(least, QuotaOf(mounted + own));
  std::ifstream file(root + "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    if (path.find("..") != std::string::npos) continue;
    for (size_t end = path.find('/', 1); path.size() > 1; end = path.find('/', end + 1)) {
      least = std::min(least, QuotaOf(mounted + "/" + controllers + path.substr(0, end)));
      if (end == std::string::npos) break;
    }
  }
  return least;
}

int WithinQuota(int count, const std::string& root) {
  return std::max(1, static_cast<int>(std::min<double>(count, std::ceil(Quota(root)))));
}

}  // namespace

int Worthwhile(std::vector<double> speeds) {
  std::sort(speeds.begin(), speeds.end(), std::greater<double>());
  size_t best = 0;
  for (size_t i = 1; i < speeds.size(); ++i) {
    if ((i + 1) * speeds[i] > (best + 1) * speeds[best]) best = i;
  }
  return static_cast<int>(best + 1);
}

int UsableProcessors(const std::string& root) { return WithinQuota(static_cast<int>(Affinity().size()), root); }

int UsableCores(const std::string& root) {
  std::set<int> slow = NumbersIn(LineOf(root + "sys/devices/cpu_atom/cpus"));
  std::map<std::string, double> cores;
  for (int number : Affinity()) {
    std::string folder = root + "sys/devices/system/cpu/cpu" + std::to_string(number);
    std::string core = LineOf(folder + "/topology/thread_siblings_list"), told = LineOf(folder + "/cpu_capacity");
    cores[core.empty() ? std::to_string(number) : core] = IsNumber(told) ? std::atof(told.c_str()) : slow.count(number) ? kEfficiencySpeed : 1.0;
  }
  std::vector<double> speeds;
  for (const auto& each : cores) speeds.push_back(each.second);
  return WithinQuota(Worthwhile(std::move(speeds)), root);
}

}  // namespace tensorwright
