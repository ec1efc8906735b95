#include "processing.h"

#include <optional>

#include "checked_json.h"
#include "tensors.h"

namespace tensorwright {
namespace {

constexpr size_t kMaxClassNames = 1 << 20;
constexpr int64_t kMaxEdge = 1 << 16, kMaxWindow = 1 << 28, kHighestRate = 1'000'000;

}  // namespace

Processing Processing::Of(const Artifact& artifact) {
  const char* hint = "compile it with --processing or --task, or give tensors: --inputs FILE";
  std::optional<ffi::Tensor> stored;
  if (!artifact.asset_descriptions.empty()) {
    for (const NamedTensor& each : ReadTensors(artifact.assets, artifact.asset_descriptions, "the assets of the module")) {
      if (each.name == "processing.json") stored = each.tensor;
    }
  }
  if (!stored) throw Error("the module was compiled without processing", hint);
  JsonValue json = JsonValue::Parse(static_cast<const char*>(stored->data_ptr()), TensorBytes(*stored->GetDLTensorPtr()), "the module's processing.json");
  Processing processing;
  processing.task = json["task"].Text();
  if (processing.task == "speech") {
    processing.rate = json["rate"].Whole(1, kHighestRate);
    processing.window = json["window"].Whole(1, kMaxWindow), processing.context = json["context"].Whole(0, kMaxWindow);
    processing.score = json["score"].Amount();
    return processing;
  }
  if (artifact.inputs.size() != 1 || artifact.inputs[0].name != "image") throw Error("the module takes neither pictures nor recordings; its task is " + Quoted(processing.task), hint);
  processing.resize = json["resize"].Text();
  std::vector<JsonValue> size = json["size"].Items(2);
  if (size.size() != 2) json.Fail("its size is not a height and a width");
  processing.rows = size[0].Whole(1, kMaxEdge), processing.columns = size[1].Whole(1, kMaxEdge);
  if (auto names = json.Find("names")) {
    for (const JsonValue& each : names->Items(kMaxClassNames)) processing.names.push_back(each.Text());
  }
  return processing;
}

}  // namespace tensorwright
