// AVX2 and FMA: Intel from Haswell (2013), AMD from Excavator and Zen.
#include "kernels.h"

#if defined(__x86_64__)
namespace rnn_ext::avx2 {
static bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
}  // namespace rnn_ext::avx2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define RNN_EXT_VECTOR_BYTES 32
namespace rnn_ext::avx2 {
#include "kernels.inl"
extern const Isa isa;
const Isa isa = make_isa("avx2", supported);
}  // namespace rnn_ext::avx2
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
