// What the fuzzers have the C++ runtime do with bytes. Everything but an Error (or one of TVM's) is a defect.
#pragma once

#include <cstdint>
#include <string>

#include "artifact.h"
#include "dtypes.h"
#include "mapped_code.h"
#include "requirements.h"
#include "tensors.h"

// What sample modules take from outside of their code; never called.
extern "C" const tensorwright_symbol tensorwright_symbols[] = {
    {"TVMFFIErrorSetRaisedFromCStrParts", nullptr}, {"memcpy", nullptr}, {"memset", nullptr}, {"sinf", nullptr}, {"cosf", nullptr}, {nullptr, nullptr}};

namespace tensorwright {

// What both readers of modules check, here and in Python.
inline std::shared_ptr<Artifact> Check(Span file) {
  auto artifact = Artifact::FromMemory(file, "the module");
  InputChecker checker(*artifact);
  ReadTensors(artifact->parameters, artifact->parameter_descriptions, "the parameters");
  ReadTensors(artifact->reference_inputs, artifact->reference_input_descriptions, "the reference inputs");
  ReadTensors(artifact->reference_outputs, artifact->reference_output_descriptions, "the reference outputs");
  if (!artifact->initial_state_descriptions.empty()) ReadTensors(artifact->initial_states, artifact->initial_state_descriptions, "the states");
  if (!artifact->asset_descriptions.empty()) ReadTensors(artifact->assets, artifact->asset_descriptions, "the assets");
  return artifact;
}

// Everything that is read of a module before its code runs.
inline void ReadAll(Span file) {
  auto artifact = Check(file);
  std::vector<ffi::Tensor> inputs;
  for (const NamedTensor& each : ReadTensors(artifact->reference_inputs, artifact->reference_input_descriptions, "the reference inputs")) {
    inputs.push_back(each.tensor);
  }
  if (inputs.size() == artifact->inputs.size()) InputChecker(*artifact).Check(inputs);
  MappedCode code(artifact->library);
}

// A file of inputs for a module.
inline void ReadInputsOf(const Manifest& manifest, Span file) { InputChecker(manifest).Check(ReadInputs(file, manifest.inputs, "the inputs")); }

}  // namespace tensorwright
