// oneDNN's vanilla_rnn primitive behind a C interface, for benchmarks/peers/onednn_peer.py.
//
// A stack is one primitive a layer and direction pair, chained. Made once: primitives, every intermediate buffer, the
// workspace. Paid in each call: what a training step or a first inference pays again because weights change between
// calls, that is, the sum of the two biases, the reorders of the weights into the primitives' own layouts and, in
// training, those of the gradients back.
//
// Weights as PyTorch has them, a layer's directions one after the other; each pointer is to
//   w_ih (D, H, I)   w_hh (D, H, H)   b_ih (D, H)   b_hh (D, H)
#include <omp.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"

using dnnl::memory;
using Tag = memory::format_tag;
using Arguments = std::unordered_map<int, memory>;

namespace {

thread_local std::string last_error;

memory::desc f32(const memory::dims& dims, Tag tag) { return {dims, memory::data_type::f32, tag}; }

// PyTorch's (D, H, features) is layer, direction, gate, output, input.
constexpr Tag kTorch = Tag::ldgoi;

// A tensor in the caller's layout and one in the primitive's; the same one where both agree.
struct Weights {
  memory theirs, own;
  dnnl::reorder to_own, to_theirs;

  Weights() = default;
  Weights(const memory::desc& torch, const memory::desc& wanted, const dnnl::engine& engine)
      : theirs(torch, engine, nullptr), own(torch == wanted ? theirs : memory(wanted, engine)) {
    if (same()) return;
    to_own = dnnl::reorder(theirs, own);
    to_theirs = dnnl::reorder(own, theirs);
  }

  bool same() const { return theirs.get() == own.get(); }
  void load(dnnl::stream& stream, const float* data) {
    theirs.set_data_handle(const_cast<float*>(data));
    if (!same()) to_own.execute(stream, theirs, own);
  }
  void store(dnnl::stream& stream) {
    if (!same()) to_theirs.execute(stream, own, theirs);
  }
  // The primitive adds gradients to what is there.
  void clear(float* data) {
    theirs.set_data_handle(data);
    std::memset(own.get_data_handle(), 0, own.get_desc().get_size());
  }
};

struct Layer {
  dnnl::vanilla_rnn_forward forward;
  dnnl::vanilla_rnn_backward backward;
  std::string implementation;
  // Of the forward and of the backward primitive, which may want other layouts; then the gradients'.
  Weights w_ih, w_hh, back_ih, back_hh, grad_ih, grad_hh;
  // h0: zeros. Without one, W_hh's gradient comes out wrong (2023.2.0, one direction).
  std::vector<float> bias, h0, y, dx;
  memory bias_memory, grad_bias, y_memory, dx_memory, workspace;
  memory x_memory, g_memory;  // the caller's, or a neighbour's buffer
  // All memories above, by role; a memory is a handle, so a new data pointer is seen here too.
  Arguments forward_arguments, backward_arguments;
};

struct Stack {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::vector<Layer> layers;
  bool training = false;
  int threads = 1;
};

void make_layer(Layer& layer, Stack& stack, int64_t t, int64_t n, int64_t i, int64_t h, int64_t d) {
  using dnnl::algorithm;
  using dnnl::prop_kind;
  const auto& engine = stack.engine;
  const auto direction =
      d == 2 ? dnnl::rnn_direction::bidirectional_concat : dnnl::rnn_direction::unidirectional_left2right;
  const memory::desc none;
  const auto x = f32({t, n, i}, Tag::tnc), y = f32({t, n, d * h}, Tag::tnc), bias = f32({1, d, 1, h}, Tag::ldgo);
  const auto h0 = f32({1, d, n, h}, Tag::ldnc);
  const auto any_ih = f32({1, d, i, 1, h}, Tag::any), any_hh = f32({1, d, h, 1, h}, Tag::any);
  const auto torch_ih = f32({1, d, i, 1, h}, kTorch), torch_hh = f32({1, d, h, 1, h}, kTorch);

  const dnnl::vanilla_rnn_forward::primitive_desc forward(
      engine, stack.training ? prop_kind::forward_training : prop_kind::forward_inference, algorithm::eltwise_tanh,
      direction, x, h0, any_ih, any_hh, bias, y, none);
  layer.forward = dnnl::vanilla_rnn_forward(forward);
  layer.implementation = forward.impl_info_str();
  layer.w_ih = Weights(torch_ih, forward.weights_layer_desc(), engine);
  layer.w_hh = Weights(torch_hh, forward.weights_iter_desc(), engine);
  layer.bias.resize(d * h);
  layer.y.resize(t * n * d * h);
  layer.bias_memory = memory(bias, engine, layer.bias.data());
  layer.y_memory = memory(y, engine, layer.y.data());
  layer.x_memory = memory(x, engine, nullptr);
  layer.h0.resize(d * n * h);
  const memory h0_memory(h0, engine, layer.h0.data());
  layer.forward_arguments = {{DNNL_ARG_SRC_LAYER, layer.x_memory},     {DNNL_ARG_SRC_ITER, h0_memory},
                             {DNNL_ARG_WEIGHTS_LAYER, layer.w_ih.own}, {DNNL_ARG_WEIGHTS_ITER, layer.w_hh.own},
                             {DNNL_ARG_BIAS, layer.bias_memory},       {DNNL_ARG_DST_LAYER, layer.y_memory}};
  if (!stack.training) return;

  const dnnl::vanilla_rnn_backward::primitive_desc backward(engine, prop_kind::backward, algorithm::eltwise_tanh,
                                                            direction, x, h0, any_ih, any_hh, bias, y, none, x, h0,
                                                            any_ih, any_hh, bias, y, none, forward);
  layer.backward = dnnl::vanilla_rnn_backward(backward);
  layer.implementation += std::string(" / ") + backward.impl_info_str();
  layer.back_ih = Weights(torch_ih, backward.weights_layer_desc(), engine);
  layer.back_hh = Weights(torch_hh, backward.weights_iter_desc(), engine);
  layer.grad_ih = Weights(torch_ih, backward.diff_weights_layer_desc(), engine);
  layer.grad_hh = Weights(torch_hh, backward.diff_weights_iter_desc(), engine);
  layer.grad_bias = memory(bias, engine, nullptr);
  layer.dx.resize(t * n * i);
  layer.dx_memory = memory(x, engine, layer.dx.data());
  layer.g_memory = memory(y, engine, nullptr);
  layer.workspace = memory(forward.workspace_desc(), engine);
  layer.forward_arguments.insert({DNNL_ARG_WORKSPACE, layer.workspace});
  layer.backward_arguments = layer.forward_arguments;
  layer.backward_arguments[DNNL_ARG_WEIGHTS_LAYER] = layer.back_ih.own;
  layer.backward_arguments[DNNL_ARG_WEIGHTS_ITER] = layer.back_hh.own;
  layer.backward_arguments.insert({{DNNL_ARG_DIFF_DST_LAYER, layer.g_memory},
                                   {DNNL_ARG_DIFF_SRC_LAYER, layer.dx_memory},
                                   {DNNL_ARG_DIFF_SRC_ITER, memory(h0, engine)},
                                   {DNNL_ARG_DIFF_WEIGHTS_LAYER, layer.grad_ih.own},
                                   {DNNL_ARG_DIFF_WEIGHTS_ITER, layer.grad_hh.own},
                                   {DNNL_ARG_DIFF_BIAS, layer.grad_bias}});
}

// weights: w_ih, w_hh, b_ih, b_hh of layer 0, of layer 1, ...
void run_forward(Stack& stack, const float* x, const float* const* weights) {
  for (size_t l = 0; l < stack.layers.size(); ++l) {
    Layer& layer = stack.layers[l];
    const float* const* w = weights + 4 * l;
    for (size_t j = 0; j < layer.bias.size(); ++j) layer.bias[j] = w[2][j] + w[3][j];
    layer.w_ih.load(stack.stream, w[0]);
    layer.w_hh.load(stack.stream, w[1]);
    layer.x_memory.set_data_handle(l == 0 ? const_cast<float*>(x) : stack.layers[l - 1].y.data());
    layer.forward.execute(stack.stream, layer.forward_arguments);
  }
}

// gradients: of w_ih, w_hh and of the sum of the biases, a layer after the other.
void run_backward(Stack& stack, const float* const* weights, const float* g, float* const* gradients) {
  for (size_t l = stack.layers.size(); l-- > 0;) {
    Layer& layer = stack.layers[l];
    const bool last = l + 1 == stack.layers.size();
    layer.back_ih.load(stack.stream, weights[4 * l]);
    layer.back_hh.load(stack.stream, weights[4 * l + 1]);
    layer.grad_ih.clear(gradients[3 * l]);
    layer.grad_hh.clear(gradients[3 * l + 1]);
    std::memset(gradients[3 * l + 2], 0, layer.bias.size() * sizeof(float));
    layer.grad_bias.set_data_handle(gradients[3 * l + 2]);
    layer.g_memory.set_data_handle(last ? const_cast<float*>(g) : stack.layers[l + 1].dx.data());
    layer.backward.execute(stack.stream, layer.backward_arguments);
    layer.grad_ih.store(stack.stream);
    layer.grad_hh.store(stack.stream);
  }
}

}  // namespace

extern "C" {

const char* onednn_error() { return last_error.c_str(); }

// Null if the primitives cannot be made; onednn_error() says why.
Stack* onednn_create(int64_t t, int64_t n, int64_t i, int64_t h, int64_t layers, int64_t d, int training, int threads) {
  try {
    // oneDNN fixes a primitive's thread split when it is made.
    omp_set_num_threads(threads);
    auto stack = std::make_unique<Stack>();
    stack->training = training != 0;
    stack->threads = threads;
    stack->layers.resize(layers);
    for (int64_t l = 0; l < layers; ++l) make_layer(stack->layers[l], *stack, t, n, l == 0 ? i : d * h, h, d);
    return stack.release();
  } catch (const std::exception& error) {
    last_error = error.what();
    return nullptr;
  }
}

void onednn_destroy(Stack* stack) { delete stack; }

const char* onednn_implementation(const Stack* stack) { return stack->layers[0].implementation.c_str(); }

// The last layer's output, (T, N, D*H).
const float* onednn_output(const Stack* stack) { return stack->layers.back().y.data(); }

// Forward; and backward too if there is a g. 0, or 1 with onednn_error().
int onednn_run(Stack* stack, const float* x, const float* const* weights, const float* g, float* const* gradients) {
  try {
    omp_set_num_threads(stack->threads);
    run_forward(*stack, x, weights);
    if (g != nullptr) run_backward(*stack, weights, g, gradients);
    stack->stream.wait();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

}  // extern "C"
