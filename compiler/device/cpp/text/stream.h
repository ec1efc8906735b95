// Text from tokens as they arrive, like generation/text.py of the Python package.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace tensorwright {

// A character is returned once all of its bytes are known.
class TextStream {
 public:
  using Decode = std::function<std::string(const std::vector<int64_t>&)>;

  // `before`: tokens of the prompt, which some tokenizers need to decide whether a space is needed.
  TextStream(Decode decode, const std::vector<int64_t>& before);
  std::string Add(int64_t token);
  std::string End() { return Next(true); }

 private:
  std::string Next(bool final);

  Decode decode_;
  std::vector<int64_t> tokens_;
  size_t begin_ = 0, given_;
};

// Holds back text that may be the beginning of a stop text.
class StopTexts {
 public:
  explicit StopTexts(std::vector<std::string> stops) : stops_(std::move(stops)) {}
  std::string Add(const std::string& piece);
  std::string End();
  bool found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool found_ = false;
};

}  // namespace tensorwright
