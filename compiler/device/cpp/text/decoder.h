// Converts the texts of tokens to a text.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "reader.h"

namespace tensorwright {

class Decoder {
 public:
  // Throws Error for an unknown step.
  explicit Decoder(Reader* reader);
  std::string operator()(std::vector<std::string> tokens) const;

 private:
  using Step = std::function<std::vector<std::string>(std::vector<std::string>)>;
  static Step NextStep(Reader* reader);

  bool separates_;
  std::vector<Step> steps_;
};

}  // namespace tensorwright
