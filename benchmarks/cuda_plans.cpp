// What the planner gives a block of each kernel, for cuda_cost.py: no GPU, no CUDA.
//
//   plans CAPABILITY SHARED_BYTES
//
// goes through problems of up to 16 rows and 1024 columns, on devices with room for all and with little, which between
// them have every kernel in some plan. A line of each plan: its variant and format, whether tensor cores, columns of a
// block, threads, rows of a tile, and a block's bytes of shared memory.
#include <cstdio>
#include <cstdlib>

#include "cuda/planner.h"

using namespace rnn_ext::cuda;

int main(int count, char** words) {
  if (count != 3) return 2;
  const int capability = std::atoi(words[1]), shared_bytes = std::atoi(words[2]);
  constexpr const char *kFormats[] = {"float64", "float32", "TF32", "float16", "bfloat16"},
                       *kVariants[] = {"resident", "cluster", "persistent"};
  for (const int multiprocessors : {132, 16, 8, 1})
    for (const Format format : {Format::float32, Format::tf32, Format::float16, Format::bfloat16})
      for (const Variant variant : {Variant::resident, Variant::cluster, Variant::persistent})
        for (int hidden = 32; hidden <= 1024; hidden += 32)
          for (const int batch : {1, 2, 4, 8, 16}) {
            const Device device{capability, multiprocessors, shared_bytes, cluster_blocks(capability)};
            const auto plan = plan_for(variant, {100, batch, 1, hidden}, format, device);
            if (!plan) continue;
            const int columns = plan->tensor ? kTensorTiles[plan->tile].columns : kFloatTiles[plan->tile].columns;
            std::printf("%s %s %d %d %d %d %lld\n", kVariants[static_cast<int>(variant)],
                        kFormats[static_cast<int>(format)], plan->tensor, columns, plan->threads, plan->tile_rows,
                        static_cast<long long>(plan->shared_bytes));
          }
  return 0;
}
