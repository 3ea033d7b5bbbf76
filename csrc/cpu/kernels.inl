// All that is compiled once per instruction set, in the order it builds up. An ISA file (isa_*.cpp) sets
// the target and RNN_EXT_VECTOR_BYTES, opens its namespace and includes this; standard headers come
// before the target is set, so that no inline function of theirs is emitted with instructions that the
// machine may lack.
#include "simd.inl"
#include "storage.inl"
#include "tanh.inl"
#include "pack.inl"
#include "microkernel.inl"
#include "rows.inl"
#include "epilogue.inl"
#include "segment.inl"
#include "finish.inl"
#include "projection.inl"
#include "recurrence.inl"

template <class T>
void tanh_array(const T* x, T* y, int64_t n) {
  constexpr int L = kLanes<T>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(y + i, tanh<T>(load(x + i)));
  if (i < n) store_first(y + i, tanh<T>(load_first(x + i, static_cast<int>(n - i))), static_cast<int>(n - i));
}

template <class K>
constexpr Kernel<typename K::Storage> kernel_of() {
  return {K::tiling, run<K>};
}

constexpr Isa make_isa(const char* name, bool (*supported)()) {
  return {name,
          kVectorBytes,
          supported,
          supported,
          kernel_of<VectorKernel<float>>(),
          kernel_of<VectorKernel<double>>(),
          kernel_of<VectorKernel<half>>(),
          kernel_of<VectorKernel<bfloat16>>(),
          kernel_of<RowKernel<float>>(),
          kernel_of<RowKernel<double>>(),
          kernel_of<RowKernel<half>>(),
          kernel_of<RowKernel<bfloat16>>(),
          tanh_array<float>,
          tanh_array<double>};
}
