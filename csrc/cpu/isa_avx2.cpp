// AVX2, FMA and F16C: Intel from Haswell (2013), AMD from Excavator and Zen.
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

namespace rnn_ext::avx2 {
static bool supported() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
}
}  // namespace rnn_ext::avx2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
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
