// The matrix unit (AMX), for bfloat16: Intel from Sapphire Rapids.
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,fma,prefer-vector-width=512")
#endif
#define RNN_EXT_VECTOR_BYTES 64
namespace rnn_ext::amx {
#include "kernels.inl"
#include "pairs.inl"
#include "amx.inl"
extern const Kernel<bfloat16> kernel;
const Kernel<bfloat16> kernel = kernel_of<AmxKernel>();
}  // namespace rnn_ext::amx
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
