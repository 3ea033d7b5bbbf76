#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace rnn_ext {

namespace baseline {
extern const Isa isa;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Isa isa;
}
namespace avx512 {
extern const Isa isa;
}
#endif

const std::vector<const Isa*>& compiled_isas() {
  static const std::vector<const Isa*> all = {
      &baseline::isa,
#if defined(__x86_64__)
      &avx2::isa,
      &avx512::isa,
#endif
  };
  return all;
}

const Isa& current_isa() {
  static const Isa* const best = [] {
    const Isa* found = nullptr;
    for (const Isa* isa : compiled_isas())
      if (isa->supported()) found = isa;
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
