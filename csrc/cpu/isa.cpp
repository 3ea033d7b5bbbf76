#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

// A build for tests, whose CPU tensors the CUDA kernels compute on an emulator, has one in the CPU kernels' place.
#if defined(__x86_64__) && !defined(RNN_EXT_CUDA_EMULATED)
#define RNN_EXT_VECTOR_ISAS
#endif

namespace rnn_ext {

namespace baseline {
extern const Isa isa;
}
#if defined(RNN_EXT_VECTOR_ISAS)
namespace avx2 {
extern const Isa isa;
}
namespace avx512 {
extern const Isa isa;
}
// Kernels of their own for bfloat16 only; all else is avx512's.
namespace avx512_bf16 {
extern const Kernel<bfloat16> kernel;
static bool supported() { return avx512::isa.supported() && __builtin_cpu_supports("avx512bf16"); }
// On Intel's cores two FMAs do more than one vdpbf16ps.
static bool preferred() { return supported() && __builtin_cpu_is("amd"); }
}  // namespace avx512_bf16
namespace amx {
extern const Kernel<bfloat16> kernel;
static bool supported() {
#if defined(__linux__)
  // CPUID leaf 7: amx-bf16 is bit 22 of edx, amx-tile bit 24. The 8 KiB of tiles are a state that the kernel saves for
  // a process only once it has asked for it (arch_prctl ARCH_REQ_XCOMP_PERM of XTILEDATA).
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return avx512_bf16::supported() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTile) &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}
}  // namespace amx

static Isa avx512_with(const char* name, bool (*supported)(), bool (*preferred)(), const Kernel<bfloat16>& kernel) {
  Isa isa = avx512::isa;
  isa.name = name;
  isa.supported = supported;
  isa.preferred = preferred;
  isa.bf16 = kernel;
  return isa;
}
#endif

const std::vector<const Isa*>& compiled_isas() {
#if defined(RNN_EXT_VECTOR_ISAS)
  static const Isa with_dot =
      avx512_with("avx512_bf16", avx512_bf16::supported, avx512_bf16::preferred, avx512_bf16::kernel);
  static const Isa with_amx = avx512_with("amx", amx::supported, amx::supported, amx::kernel);
  static const std::vector<const Isa*> all = {&baseline::isa, &avx2::isa, &avx512::isa, &with_dot, &with_amx};
#else
  static const std::vector<const Isa*> all = {&baseline::isa};
#endif
  return all;
}

const Isa& current_isa() {
  static const Isa* const best = [] {
    const Isa* found = nullptr;
    for (const Isa* isa : compiled_isas())
      if (isa->preferred()) found = isa;
    return found;
  }();
  const char* wanted = std::getenv("RNN_EXT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return *best;
  std::string runnable;
  for (const Isa* isa : compiled_isas()) {
    if (!isa->supported()) continue;
    if (std::strcmp(wanted, isa->name) == 0) return *isa;
    runnable += (runnable.empty() ? "" : ", ") + std::string(isa->name);
  }
  throw std::invalid_argument("RNN_EXT_CPU_ISA is '" + std::string(wanted) + "'; this machine runs: " + runnable);
}

}  // namespace rnn_ext
