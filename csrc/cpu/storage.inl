// Elements as tensors hold them, and the vectors the kernels compute with. For float and double the two are the
// same; the 16-bit formats are widened to float when read, and rounded to nearest even when written. Included inside a
// per-ISA namespace.

template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

// As many 16-bit elements as a vector has floats.
typedef uint16_t Vec16 __attribute__((vector_size(kVectorBytes / 2), may_alias));
typedef uint16_t LooseVec16 __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(2)));
typedef uint32_t Unsigned32 __attribute__((vector_size(kVectorBytes), may_alias));

RNN_EXT_INLINE Vec<float> widen(Vec16 v, bfloat16) {
  return (Vec<float>)(__builtin_convertvector(v, Unsigned32) << 16);
}

RNN_EXT_INLINE Vec16 narrow(Vec<float> v, bfloat16) {
  const Unsigned32 u = (Unsigned32)v;
  const Unsigned32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  // Rounding could carry a NaN's mantissa into the sign; a quiet NaN stands for all of them.
  const Unsigned32 nan = (u >> 16) | 0x40;
  return __builtin_convertvector(v == v ? rounded : nan, Vec16);
}

#if RNN_EXT_VECTOR_BYTES == 64
// The masked forms, of all lanes: GCC 12 warns of the others' own code.
RNN_EXT_INLINE Vec<float> widen(Vec16 v, half) { return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)v); }
RNN_EXT_INLINE Vec16 narrow(Vec<float> v, half) {
  return (Vec16)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif RNN_EXT_VECTOR_BYTES == 32
RNN_EXT_INLINE Vec<float> widen(Vec16 v, half) { return (Vec<float>)_mm256_cvtph_ps((__m128i)v); }
RNN_EXT_INLINE Vec16 narrow(Vec<float> v, half) {
  return (Vec16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
// half is 1 + 5 + 10 bits, exponent bias 15; float is 1 + 8 + 23, bias 127.
RNN_EXT_INLINE Vec<float> widen(Vec16 v, half) {
  const Unsigned32 h = __builtin_convertvector(v, Unsigned32);
  const Unsigned32 magnitude = (h & 0x7fff) << 13;
  // The bits in their places read as the number times 2^(15-127), subnormal ones too; infinity and NaN are set right.
  const Vec<float> finite = (Vec<float>)magnitude * 0x1p112f;
  const Unsigned32 u = (h & 0x7c00) == 0x7c00 ? (magnitude | 0x7f800000) : (Unsigned32)finite;
  return (Vec<float>)(u | (h & 0x8000) << 16);
}
RNN_EXT_INLINE Vec16 narrow(Vec<float> v, half) {
  const Unsigned32 sign = (Unsigned32)v & 0x80000000u;
  const Unsigned32 u = (Unsigned32)v ^ sign;
  const Vec<float> magnitude = (Vec<float>)u;
  const Unsigned32 normal = (u - (112u << 23) + 0xfff + ((u >> 13) & 1)) >> 13;
  // Below the least normal number, 2^-14: an addition of 0.5 leaves multiples of 2^-24 in the last bits, rounded.
  const Unsigned32 subnormal = (Unsigned32)(magnitude + 0.5f) - 0x3f000000u;
  const Unsigned32 infinite = magnitude == magnitude ? Unsigned32{} + 0x7c00 : Unsigned32{} + 0x7e00;
  Unsigned32 r = magnitude < 0x1p-14f ? subnormal : normal;
  r = magnitude < 65520.0f ? r : infinite;  // from here on the nearest is infinity; NaN compares false
  return __builtin_convertvector(r | (sign >> 16), Vec16);
}
#endif

template <class S>
RNN_EXT_INLINE auto load_16(const S* p) {
  return widen(*reinterpret_cast<const LooseVec16*>(p), S{});
}
RNN_EXT_INLINE Vec<float> load(const half* p) { return load_16(p); }
RNN_EXT_INLINE Vec<float> load(const bfloat16* p) { return load_16(p); }

// The first n elements, 0 < n < a vector's; the others read as zero and are not touched.
#if RNN_EXT_VECTOR_BYTES == 64
template <class S>
RNN_EXT_INLINE Vec<float> load_first_16(const S* p, int n) {
  return widen((Vec16)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p), S{});
}
template <class S>
RNN_EXT_INLINE void store_first_16(S* p, Vec16 v, int n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), (__m256i)v);
}
#else
// No masked move knows of elements so small: they are pieces of four, two and one, put together in integers. (In memory
// a vector would wait for the stores of its elements.)
typedef uint64_t Fours __attribute__((vector_size(kVectorBytes / 2), may_alias));
constexpr int kLastFour = kVectorBytes / 16 - 1;
template <class Piece>
RNN_EXT_INLINE Piece piece_at(const void* p) {
  Piece piece;
  std::memcpy(&piece, p, sizeof piece);
  return piece;
}
template <class Piece>
RNN_EXT_INLINE void put_piece(void* p, uint64_t bits) {
  const Piece piece = static_cast<Piece>(bits);
  std::memcpy(p, &piece, sizeof piece);
}
template <class S>
RNN_EXT_INLINE Vec<float> load_first_16(const S* p, int n) {
  const S* const rest = p + (n & 4);
  uint64_t last = 0;
  if (n & 2) last = piece_at<uint32_t>(rest);
  if (n & 1) last |= uint64_t{piece_at<uint16_t>(rest + (n & 2))} << 16 * (n & 2);
  Fours fours = {last};
  if (n & 4) {
    fours[kLastFour] = last;
    fours[0] = piece_at<uint64_t>(p);
  }
  return widen((Vec16)fours, S{});
}
template <class S>
RNN_EXT_INLINE void store_first_16(S* p, Vec16 v, int n) {
  const Fours fours = (Fours)v;
  uint64_t last = fours[0];
  if (n & 4) {
    put_piece<uint64_t>(p, last);
    last = fours[kLastFour];
  }
  S* const rest = p + (n & 4);
  if (n & 2) {
    put_piece<uint32_t>(rest, last);
    last >>= 32;
  }
  if (n & 1) put_piece<uint16_t>(rest + (n & 2), last);
}
#endif
RNN_EXT_INLINE Vec<float> load_first(const half* p, int n) { return load_first_16(p, n); }
RNN_EXT_INLINE Vec<float> load_first(const bfloat16* p, int n) { return load_first_16(p, n); }

// Bools as zeros and ones. A bool is a byte, 0 or 1.
template <class T>
RNN_EXT_INLINE Vec<T> load_bools(const bool* p) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<T>)));
  // By way of integers as wide as T: one instruction each, where GCC would else go element by element.
  typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Wide __attribute__((vector_size(kVectorBytes)));
  Bytes bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, Wide), Vec<T>);
}
template <class T>
RNN_EXT_INLINE Vec<T> load_first_bools(const bool* p, int n) {
  bool first[kLanes<T>] = {};
  std::memcpy(first, p, n);
  return load_bools<T>(first);
}

template <class S>
struct Held {
  using Bits = Vec16;
};
template <>
struct Held<float> {
  using Bits = Vec<float>;
};
template <>
struct Held<double> {
  using Bits = Vec<double>;
};

// Values as an S holds them.
template <class S>
struct Rounded {
  static constexpr bool k16 = sizeof(S) == 2;
  typename Held<S>::Bits bits;

  RNN_EXT_INLINE explicit Rounded(Vec<Compute<S>> v) {
    if constexpr (k16)
      bits = narrow(v, S{});
    else
      bits = v;
  }
  RNN_EXT_INLINE Vec<Compute<S>> widened() const {
    if constexpr (k16)
      return widen(bits, S{});
    else
      return bits;
  }
  RNN_EXT_INLINE void store_to(S* p) const {
    if constexpr (k16)
      *reinterpret_cast<LooseVec16*>(p) = bits;
    else
      store(p, bits);
  }
  RNN_EXT_INLINE void store_first_to(S* p, int n) const {
    if constexpr (k16)
      store_first_16(p, bits, n);
    else
      store_first(p, bits, n);
  }
};

// n elements from one format to another; nothing is rounded that was not rounded before.
template <class To, class From>
void convert_row(To* to, const From* from, int64_t n) {
  // In other formats a row is mostly some vectors long, and a call of memcpy takes as long as that.
  if constexpr (std::is_same_v<To, From> && sizeof(To) == 2) {
    std::memcpy(to, from, n * sizeof(To));
  } else {
    constexpr int L = kLanes<Compute<To>>;
    int64_t i = 0;
    for (; i + L <= n; i += L) Rounded<To>(load(from + i)).store_to(to + i);
    if (i < n) {
      const int rest = static_cast<int>(n - i);
      Rounded<To>(load_first(from + i, rest)).store_first_to(to + i, rest);
    }
  }
}

// n zeros. Likewise.
template <class T>
void clear_row(T* row, int64_t n) {
  constexpr int L = kLanes<Compute<T>>;
  const Rounded<T> zero(Vec<Compute<T>>{});
  int64_t i = 0;
  for (; i + L <= n; i += L) zero.store_to(row + i);
  if (i < n) zero.store_first_to(row + i, static_cast<int>(n - i));
}

// row *= by, elementwise.
template <class T, class S>
void multiply_row(T* row, const S* by, int64_t n) {
  constexpr int L = kLanes<Compute<T>>;
  int64_t i = 0;
  for (; i + L <= n; i += L) Rounded<T>(load(row + i) * load(by + i)).store_to(row + i);
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    Rounded<T>(load_first(row + i, rest) * load_first(by + i, rest)).store_first_to(row + i, rest);
  }
}
