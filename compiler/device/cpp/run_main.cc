#include "run.h"

int main(int count, char** arguments) {
  return tensorwright::Guarded([&] { return tensorwright::RunnerMain(count, arguments); });
}
