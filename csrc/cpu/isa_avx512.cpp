// AVX-512 F, DQ, BW and VL: Intel from Skylake-SP (2017), AMD from Zen 4.
#include "kernels.h"

#if defined(__x86_64__)
namespace rnn_ext::avx512 {
static bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
}  // namespace rnn_ext::avx512

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")
#endif
#define RNN_EXT_VECTOR_BYTES 64
namespace rnn_ext::avx512 {
#include "kernels.inl"
extern const Isa isa;
const Isa isa = make_isa("avx512", supported);
}  // namespace rnn_ext::avx512
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
