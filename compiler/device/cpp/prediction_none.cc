// For static programs with modules that do not process images: without image decoders.
#include "image.h"
#include "prediction.h"

namespace tensorwright {
namespace {

[[noreturn]] void Refuse() { throw Error("the module of this program was not compiled with processing of pictures", "give tensors: --inputs FILE"); }

}  // namespace

Prediction ReadPrediction(const Processing&, const Manifest&, const std::vector<ffi::Tensor>&, const ffi::Tensor&) { Refuse(); }
std::string PicturePath(const Processing&, const std::string&) { Refuse(); }
ffi::Tensor ReadImage(Span, const std::string&) { Refuse(); }
void WritePng(const std::string&, const ffi::Tensor&) { Refuse(); }

}  // namespace tensorwright
