// rnn_ext._C: what was built, what this machine will use, and the plan a call would get. No tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <utility>

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/threads.h"
#include "cuda/planner.h"
#include "cuda/tf32.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict d;
  d["compiler"] = __VERSION__;
#if defined(RNN_EXT_CUDA_EMULATED)
  d["cuda"] = "emulated";
#elif defined(RNN_EXT_WITH_CUDA)
  d["cuda"] = true;
#else
  d["cuda"] = false;
#endif
  d["torch_stable_abi"] = "2.10";
  d["dtypes"] = std::vector<std::string>{"float32", "float64", "float16", "bfloat16"};
  std::vector<std::string> compiled, runnable;
  for (const rnn_ext::Isa* isa : rnn_ext::compiled_isas()) {
    compiled.push_back(isa->name);
    if (isa->supported()) runnable.push_back(isa->name);
  }
  d["cpu_isas_compiled"] = compiled;
  d["cpu_isas_runnable"] = runnable;
  return d;
}

py::dict cpu_capability() {
  const rnn_ext::Machine m = rnn_ext::this_machine();
  py::dict d;
  d["isa"] = rnn_ext::current_isa().name;
  d["vector_bytes"] = rnn_ext::current_isa().vector_bytes;
  d["l1_bytes"] = m.l1;
  d["l2_bytes"] = m.l2;
  d["l3_bytes"] = m.l3;
  return d;
}

bool has_gemm(const std::string& dtype) {
  using torch::headeronly::ScalarType;
  return rnn_ext::cpu::has_gemm(dtype == "float16"    ? ScalarType::Half
                                : dtype == "bfloat16" ? ScalarType::BFloat16
                                                      : ScalarType::Float);
}

// Of a plain layer with so many input features, as layer.cpp would compute it; with none, of a recurrence.
py::dict cpu_plan(int64_t time, int64_t batch, int64_t groups, int64_t hidden, const std::string& dtype, int threads,
                  int64_t features) {
  const rnn_ext::Isa& isa = rnn_ext::current_isa();
  rnn_ext::Shape shape = {time, batch, groups, hidden, 0};
  auto made = [&](auto format) {
    using S = decltype(format);
    rnn_ext::Way way;
    if (features > 0) way = rnn_ext::way_for<S>(isa, {time, batch, 1, hidden, features}, /*contiguous=*/true);
    if (way.projects) shape.features = features;
    const rnn_ext::Tiling& tiling = rnn_ext::kernel_for<S>(isa, way.by_rows).tiling;
    return std::pair(way,
                     rnn_ext::make_plan(shape, tiling, rnn_ext::cpu::machine_for(shape, tiling, threads), threads));
  };
  const auto [way, plan] = dtype == "float32"   ? made(float{})
                           : dtype == "float64" ? made(double{})
                           : dtype == "float16" ? made(rnn_ext::half{})
                                                : made(rnn_ext::bfloat16{});
  py::dict d;
  d["isa"] = isa.name;
  d["row_workers"] = plan.row_workers;
  d["column_workers"] = plan.column_workers;
  d["panels"] = plan.panels;
  d["by_rows"] = way.by_rows;
  d["projects"] = way.projects;
  d["ahead"] = plan.ahead;
  d["chains"] = plan.chains;
  d["tiles_first"] = plan.tiles_first;
  d["turns_in_l1"] = plan.turns_in_l1;
  d["workspace_bytes"] = plan.packed_bytes + plan.states_bytes + plan.inputs_bytes;
  d["estimated_cycles"] = plan.cycles;
  d["reason"] = rnn_ext::reason(plan, shape);
  return d;
}

py::dict cuda_plan(int64_t time, int64_t batch, int64_t groups, int64_t hidden, const std::string& dtype,
                   int capability, int multiprocessors, int shared_bytes) {
  using rnn_ext::cuda::Format;
  const std::map<std::string, Format> formats = {{"float64", Format::float64},
                                                 {"float32", Format::float32},
                                                 {"tf32", Format::tf32},
                                                 {"float16", Format::float16},
                                                 {"bfloat16", Format::bfloat16}};
  const rnn_ext::cuda::Plan plan =
      rnn_ext::cuda::make_plan({time, batch, groups, hidden}, formats.at(dtype),
                               {capability, multiprocessors, shared_bytes, rnn_ext::cuda::cluster_blocks(capability)});
  constexpr const char* kVariants[] = {"resident", "cluster", "persistent", "stepwise"};
  py::dict d;
  d["variant"] = kVariants[static_cast<int>(plan.variant)];
  d["rows"] = plan.rows;
  d["blocks"] = plan.blocks;
  d["threads"] = plan.threads;
  d["shared_bytes"] = plan.shared_bytes;
  d["workspace_bytes"] = plan.workspace_bytes;
  d["estimated_cycles"] = plan.cycles;
  d["reason"] = plan.why;
  return d;
}

}  // namespace

// Called by ops, which Python's lock does not cover.
bool rnn_ext::cuda::tf32_is_allowed() {
  const py::gil_scoped_acquire lock;
  const py::object matmul = py::module_::import("torch").attr("backends").attr("cuda").attr("matmul");
  return matmul.attr("fp32_precision").cast<std::string>() == "tf32";
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Introspection of the rnn_ext kernels; importing it registers the ops torch.ops.rnn_ext.*";
  m.def("build_info", &build_info);
  m.def("cpu_capability", &cpu_capability);
  m.def("has_gemm", &has_gemm, py::arg("dtype"));
  m.def("tf32_is_allowed", &rnn_ext::cuda::tf32_is_allowed);
  m.def("cpu_plan", &cpu_plan, py::arg("time"), py::arg("batch"), py::arg("groups"), py::arg("hidden"),
        py::arg("dtype"), py::arg("threads"), py::arg("features") = 0);
  m.def("cuda_plan", &cuda_plan, py::arg("time"), py::arg("batch"), py::arg("groups"), py::arg("hidden"),
        py::arg("dtype"), py::arg("capability"), py::arg("multiprocessors"), py::arg("shared_bytes"));
}
