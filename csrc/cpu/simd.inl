// One small vector type over the compiler's vector extensions. Included inside a per-ISA namespace
// that has set RNN_EXT_VECTOR_BYTES; everything that differs between ISAs in the kernels is here.

constexpr int kVectorBytes = RNN_EXT_VECTOR_BYTES;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
constexpr int vectors_of(int columns) {
  return (columns + kLanes<T> - 1) / kLanes<T>;
}

template <class T>
struct VecTypes;

template <>
struct VecTypes<float> {
  typedef float vec __attribute__((vector_size(kVectorBytes), may_alias));
  typedef float loose __attribute__((vector_size(kVectorBytes), may_alias, aligned(4)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes), may_alias));
};

template <>
struct VecTypes<double> {
  typedef double vec __attribute__((vector_size(kVectorBytes), may_alias));
  typedef double loose __attribute__((vector_size(kVectorBytes), may_alias, aligned(8)));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes), may_alias));
};

template <class T>
using Vec = typename VecTypes<T>::vec;
template <class T>
using Bits = typename VecTypes<T>::bits;

#define RNN_EXT_INLINE inline __attribute__((always_inline))

template <class T>
RNN_EXT_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // and not x + 0, which would turn -0 into 0
}

template <class T>
RNN_EXT_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecTypes<T>::loose*>(p);
}

template <class T>
RNN_EXT_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecTypes<T>::loose*>(p) = v;
}

// v, from here on in a register. GCC likes to make a load part of every instruction that uses it, and so reads memory
// once for each.
template <class V>
RNN_EXT_INLINE V in_register(V v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
  return v;
}

// The first n lanes, 0 < n < kLanes; the others read as zero and are not touched in memory. On
// AVX-512 and AVX2 these are masked moves, so that an odd H costs no scalar loop.
#if RNN_EXT_VECTOR_BYTES == 64
RNN_EXT_INLINE Vec<float> load_first(const float* p, int n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
RNN_EXT_INLINE void store_first(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
}
RNN_EXT_INLINE Vec<double> load_first(const double* p, int n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
RNN_EXT_INLINE void store_first(double* p, Vec<double> v, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
}
#elif RNN_EXT_VECTOR_BYTES == 32
RNN_EXT_INLINE __m256i first_mask32(int n) {
  const Bits<float> lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return (__m256i)(lane < n);
}
RNN_EXT_INLINE __m256i first_mask64(int n) {
  const Bits<double> lane = {0, 1, 2, 3};
  return (__m256i)(lane < static_cast<int64_t>(n));
}
RNN_EXT_INLINE Vec<float> load_first(const float* p, int n) {
  return (Vec<float>)_mm256_maskload_ps(p, first_mask32(n));
}
RNN_EXT_INLINE void store_first(float* p, Vec<float> v, int n) { _mm256_maskstore_ps(p, first_mask32(n), (__m256)v); }
RNN_EXT_INLINE Vec<double> load_first(const double* p, int n) {
  return (Vec<double>)_mm256_maskload_pd(p, first_mask64(n));
}
RNN_EXT_INLINE void store_first(double* p, Vec<double> v, int n) {
  _mm256_maskstore_pd(p, first_mask64(n), (__m256d)v);
}
#else
template <class T>
RNN_EXT_INLINE Vec<T> load_first(const T* p, int n) {
  Vec<T> v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class T>
RNN_EXT_INLINE void store_first(T* p, Vec<T> v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif
