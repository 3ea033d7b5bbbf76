// Whatever the compiler targets by default: SSE2 on x86-64, NEON on AArch64. 16-byte vectors.
#include "kernels.h"

#define RNN_EXT_VECTOR_BYTES 16
namespace rnn_ext::baseline {
#include "kernels.inl"
extern const Isa isa;
const Isa isa = make_isa("baseline", [] { return true; });
}  // namespace rnn_ext::baseline
