// AVX-512 with vdpbf16ps, for bfloat16. AMD from Zen 4; Intel from Cooper Lake, at half the rate of its two FMA ports.
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma,prefer-vector-width=512")
#endif
#define RNN_EXT_VECTOR_BYTES 64
namespace rnn_ext::avx512_bf16 {
#include "kernels.inl"
#include "pairs.inl"
#include "dot.inl"
extern const Kernel<bfloat16> kernel;
const Kernel<bfloat16> kernel = kernel_of<DotKernel>();
}  // namespace rnn_ext::avx512_bf16
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
