// The ops on the CPU: a plan for the problem, and its workers.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "cpu/isa.h"
#include "cpu/runs.h"
#include "cpu/planner.h"
#include "cpu/threads.h"

namespace rnn_ext {
namespace {

// Whether calls whose workers meet after each step (team.h) have lately lost a core to other processes. Such a call
// costs some time slices, tens of milliseconds where it gets bad; after each the next try waits twice as long, so
// that a crowded machine is probed ever more rarely, and a single interruption is soon forgotten.
class Crowd {
 public:
  bool here() const { return cpu::now_ms() < until_.load(std::memory_order_relaxed); }
  void note(bool lost_a_core) {
    const int64_t wait = lost_a_core ? std::min<int64_t>(2 * wait_.load(std::memory_order_relaxed), 2000) : kFirstWait;
    wait_.store(wait, std::memory_order_relaxed);
    if (lost_a_core) until_.store(cpu::now_ms() + wait, std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kFirstWait = 4;
  std::atomic<int64_t> until_{0}, wait_{kFirstWait};
};
Crowd crowd;

template <class T>
Projection<T> projection_of(const ProjectionOf& p) {
  auto bias = [](const std::optional<Tensor>& b) { return b ? static_cast<const T*>(b->const_data_ptr()) : nullptr; };
  const Weight<T> weight = {static_cast<const T*>(p.w_ih.const_data_ptr()), p.w_ih.stride(0), p.w_ih.stride(1)};
  return {sequence_of<const T>(p.x), weight, bias(p.b_ih), bias(p.b_hh)};
}

template <class T>
void run(const Call& c, const Shape& checked, const OwnedRows& rows, const Tensor& output, const Tensor& last) {
  Problem<T> problem = problem_of<T>(c, checked, output, last);
  if (c.projection) {
    problem.shape.features = c.projection->x.size(c.projection->x.dim() - 1);
    problem.input = {};
    problem.projection = projection_of<T>(*c.projection);
  }
  problem.rows = rows.view();
  problem.direction = c.direction.data();

  const Shape& shape = problem.shape;
  const Kernel<T>& kernel = kernel_for<T>(current_isa(), c.by_rows);
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  const Machine machine = cpu::machine_for(shape, kernel.tiling, threads);
  Plan plan = make_plan(shape, kernel.tiling, machine, threads);
  if (plan.column_workers > 1 && crowd.here()) plan = make_plan(shape, kernel.tiling, machine, threads, false);
  // One allocation for all; each part is a whole number of cache lines and begins at one. From malloc, not from an
  // aligned allocation: glibc's memalign splits a block at both ends, and before 2.38 a long run of calls
  // leaves the heap growing and each call searching through it, at ten times the cost of a small one.
  constexpr int64_t line = 64;
  auto whole_lines = [](int64_t bytes) { return (bytes + line - 1) / line * line; };
  const int64_t packed = whole_lines(plan.packed_bytes), states = whole_lines(plan.states_bytes);
  const std::unique_ptr<char[]> scratch(new char[packed + states + plan.inputs_bytes + line]);
  char* const memory = scratch.get() + (line - reinterpret_cast<uintptr_t>(scratch.get()) % line);
  std::vector<Arrivals> arrivals(plan.workers() > 1 ? 2 * plan.workers() : 0);
  const Workspace space = {memory, memory + packed, memory + packed + states, arrivals.data(), plan.cut.data()};

  struct Context {
    const Problem<T>& problem;
    const Plan& plan;
    const Workspace& space;
    decltype(kernel.run) run;
  } context = {problem, plan, space, kernel.run};
  cpu::launch_on_torch_pool(
      plan.workers(),
      [](int worker, int workers, void* p) {
        const Context& x = *static_cast<Context*>(p);
        x.run(x.problem, x.plan, x.space, worker, workers);
      },
      &context);
  if (plan.column_workers > 1)
    crowd.note(std::any_of(arrivals.begin(), arrivals.end(),
                           [](const Arrivals& a) { return a.takeover.load(std::memory_order_relaxed) != 0; }));
}

}  // namespace

namespace cpu {
constexpr Runs kRuns = {run<float>, run<double>, run<half>, run<bfloat16>};
Way way_of(int64_t rows, int64_t batch, const Tensor& w_ih, const Tensor& w_hh) {
  using torch::headeronly::ScalarType;
  // Of a ragged batch, one of so many rows.
  const Shape shape = {rows / std::max<int64_t>(1, batch), batch, 1, w_hh.size(1), w_ih.size(1)};
  const bool contiguous = w_hh.is_contiguous() && w_ih.is_contiguous();
  switch (w_hh.scalar_type()) {
    case ScalarType::Float: return way_for<float>(current_isa(), shape, contiguous);
    case ScalarType::Double: return way_for<double>(current_isa(), shape, contiguous);
    case ScalarType::Half: return way_for<half>(current_isa(), shape, contiguous);
    default: return way_for<bfloat16>(current_isa(), shape, contiguous);
  }
}
constexpr auto kRecurrence = On<kRuns, recurrence>::call;
constexpr auto kLinearRecurrence = On<kRuns, linear_recurrence>::call;
constexpr auto kLeakyLinearRecurrence = On<kRuns, leaky_linear_recurrence>::call;
}  // namespace cpu

}  // namespace rnn_ext

STABLE_TORCH_LIBRARY_IMPL(rnn_ext, CPU, m) {
  m.impl("recurrence", TORCH_BOX(rnn_ext::cpu::kRecurrence));
  m.impl("linear_recurrence", TORCH_BOX(rnn_ext::cpu::kLinearRecurrence));
  m.impl("leaky_linear_recurrence", TORCH_BOX(rnn_ext::cpu::kLeakyLinearRecurrence));
}
