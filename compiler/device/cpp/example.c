/* The smallest program that runs a module: load, fill the inputs with zeros, run, print the first numbers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorwright.h"

enum { MOST = 64, LARGEST_RANK = 64 };

static int failed(const char* what) {
  fprintf(stderr, "error: %s: %s\n", what, tensorwright_last_error());
  return 1;
}

int main(int count, char** arguments) {
  tensorwright_module* module;
  tensorwright_tensor inputs[MOST], outputs[MOST];
  static int64_t shapes[MOST][LARGEST_RANK];
  if (count != 2) {
    fprintf(stderr, "usage: %s MODULE.twm\n", arguments[0]);
    return 2;
  }
  if (tensorwright_load(arguments[1], &module) != 0) return failed("load");
  if (tensorwright_input_count(module) > MOST || tensorwright_output_count(module) > MOST) return failed("too many tensors");
  for (int i = 0; i < tensorwright_input_count(module); ++i) {
    if (tensorwright_input(module, i, &inputs[i]) != 0) return failed("input");
    size_t elements = 1;
    for (int axis = 0; axis < inputs[i].rank; ++axis) {
      shapes[i][axis] = inputs[i].shape[axis] < 0 ? 1 : inputs[i].shape[axis]; /* a dynamic size is ours to choose */
      elements *= (size_t)shapes[i][axis];
    }
    inputs[i].shape = shapes[i];
    inputs[i].bytes = elements * tensorwright_element_bytes(inputs[i].dtype);
    inputs[i].data = calloc(1, inputs[i].bytes + 1);
  }
  if (tensorwright_run(module, inputs, outputs) != 0) return failed("run");
  for (int i = 0; i < tensorwright_output_count(module); ++i) {
    printf("%s: %s, %zu bytes", outputs[i].name, outputs[i].dtype, outputs[i].bytes);
    if (strcmp(outputs[i].dtype, "float32") == 0 && outputs[i].bytes >= 4) printf(", first %g", ((const float*)outputs[i].data)[0]);
    printf("\n");
  }
  for (int i = 0; i < tensorwright_input_count(module); ++i) free(inputs[i].data);
  tensorwright_free(module);
  return 0;
}
