#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "../error.h"

namespace tensorwright {

Sampler::Sampler(const SamplingOptions& options, const std::vector<int64_t>& seen, Suppressed suppressed)
    : options_(options), seen_(seen.begin(), seen.end()), suppressed_(std::move(suppressed)) {
  if (options.temperature > 0) random_.emplace(options.seed);
}

int64_t Sampler::Choose(const float* logits, size_t count) {
  std::vector<float> scores(logits, logits + count);
  if (options_.repetition_penalty != 1) {
    constexpr float largest = std::numeric_limits<float>::max();
    float penalty = static_cast<float>(std::min<double>(options_.repetition_penalty, largest));
    for (int64_t token : seen_) {
      float& score = scores[static_cast<size_t>(token)];
      if (std::isfinite(score)) score = std::clamp(score > 0 ? score / penalty : score * penalty, -largest, largest);
    }
  }
  auto suppress = [&](const std::vector<uint32_t>& tokens) {
    for (uint32_t token : tokens) {
      if (token < count) scores[token] = -std::numeric_limits<float>::infinity();
    }
  };
  suppress(suppressed_.always);
  if (is_first_) suppress(suppressed_.first);
  is_first_ = false;
  bool wrong = std::any_of(scores.begin(), scores.end(), [](float score) { return std::isnan(score); });
  int64_t token = wrong ? 0 : std::max_element(scores.begin(), scores.end()) - scores.begin();
  if (wrong || !std::isfinite(scores[static_cast<size_t>(token)])) {
    throw Error("the model computed logits that are NaN or infinite", "its weights or its precision are broken");
  }
  if (random_) token = Drawn(scores);
  seen_.insert(token);
  return token;
}

// Applies temperature, top-k, top-p and min-p in this order.
int64_t Sampler::Drawn(const std::vector<float>& scores) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t left, size_t right) { return scores[left] > scores[right]; });
  size_t possible = order.size();
  while (possible > 1 && std::isinf(scores[order[possible - 1]])) --possible;
  if (options_.top_k) possible = std::min(possible, static_cast<size_t>(options_.top_k));
  std::vector<double> chances(possible);
  double most = static_cast<double>(scores[order[0]]), sum = 0;
  for (size_t i = 0; i < possible; ++i) sum += chances[i] = std::exp((static_cast<double>(scores[order[i]]) - most) / options_.temperature);
  double reached = 0;
  size_t kept = options_.top_p < 1 ? 0 : possible;
  for (double& chance : chances) chance /= sum;
  while (kept < possible) {
    reached += chances[kept++];
    if (reached >= options_.top_p) break;
  }
  while (kept > 1 && chances[kept - 1] < options_.min_p * chances[0]) --kept;
  double total = std::accumulate(chances.begin(), chances.begin() + static_cast<ptrdiff_t>(kept), 0.0), end = 0;
  double wanted = random_->Next() * total;
  for (size_t i = 0; i < kept; ++i) {
    end += chances[i];
    if (end > wanted) return static_cast<int64_t>(order[i]);
  }
  return static_cast<int64_t>(order[kept - 1]);
}

}  // namespace tensorwright
