// tanh, vectorised and branch-free; at most 2 ULP over every float32 (tests/native/test_tanh.cpp
// looks at all of them). Included inside a per-ISA namespace.
//
// AVX-512 looks float's up in a table (below). For all else,
//
//   tanh x = e / (e + 2),  e = exp(2x) - 1 = 2^n (p + 1) - 1,  p = exp(r) - 1,  2x = n ln2 + r
//
// with |r| <= ln2 / 2. e is formed as 2^n p + (2^n - 1), whose second term is exact, so nothing cancels; for
// n = 0 it is p itself, and p = r + r^2 q(r) keeps the relative precision of r. q is the minimax polynomial
// of (exp(r) - 1 - r) / r^2.
//
// The roundings of e, of e + 2 and of the quotient together reach 2.6 ULP where x is small, and there the
// odd polynomial x + x^3 s(x^2) is better; from 0.3 on, where the error of e counts for less and less
// (by 2 / (e + 2)), the quotient stays below 2.

template <class T>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  static constexpr float limit = 10.0f;          // tanh(10) rounds to 1
  static constexpr float magic = 12582912.0f;    // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float ln2_hi = 0.693359375f;  // ln 2 in two parts; n * ln2_hi is exact
  static constexpr float ln2_lo = -2.12194440e-4f;
  static constexpr float small = 0.3f;
  static constexpr float s[] = {-0.3333306015f, 0.1331483126f, -0.05036623031f};
  static constexpr int mantissa = 23;
  static constexpr int32_t one = 0x3f800000;
  static constexpr float q[] = {0.4999999702f, 0.1666654348f, 0.04166720062f, 0.008366578259f, 0.001388267148f};
};

template <>
struct TanhConstants<double> {
  static constexpr double limit = 20.0;                // tanh(20) rounds to 1
  static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_hi = 6.93147180369123816490e-01;
  static constexpr double ln2_lo = 1.90821492927058770002e-10;
  static constexpr int mantissa = 52;
  static constexpr int64_t one = 0x3ff0000000000000;
  static constexpr double q[] = {0.5,
                                 0.16666666666666677,
                                 0.04166666666666652,
                                 0.008333333333321676,
                                 0.001388888888895483,
                                 0.0001984126988602998,
                                 2.4801587187575705e-05,
                                 2.7557244285882235e-06,
                                 2.7557390058778685e-07,
                                 2.5109017797619638e-08,
                                 2.087910582368832e-09};
};

template <class T>
RNN_EXT_INLINE Vec<T> tanh(Vec<T> x) {
  using C = TanhConstants<T>;
  constexpr int degree = sizeof(C::q) / sizeof(T) - 1;
  const Bits<T> sign = (Bits<T>)x & (Bits<T>)splat<T>(T(-0.0));
  Vec<T> ax = (Vec<T>)((Bits<T>)x ^ sign);
  // The comparison is false for NaN, which so reaches the result.
  ax = C::limit < ax ? splat<T>(C::limit) : ax;
  const Vec<T> y = ax + ax;

  const Vec<T> shifted = y * T(1.44269504088896340736) + C::magic;
  const Vec<T> n = shifted - C::magic;
  const Vec<T> r = (y - n * C::ln2_hi) - n * C::ln2_lo;
  const Vec<T> two_n = (Vec<T>)(((Bits<T>)shifted << C::mantissa) + C::one);

  Vec<T> q = splat<T>(C::q[degree]);
#pragma GCC unroll 16
  for (int i = degree - 1; i >= 0; --i) q = q * r + C::q[i];
  const Vec<T> p = (r * r) * q + r;
  const Vec<T> e = two_n * p + (two_n - T(1));
  Vec<T> t = e / (e + T(2));
  if constexpr (sizeof(T) == 4) {
    const Vec<T> z = ax * ax;
    const Vec<T> odd = ((C::s[2] * z + C::s[1]) * z + C::s[0]) * (z * ax) + ax;
    t = ax < C::small ? odd : t;
  }
  return (Vec<T>)((Bits<T>)t | sign);
}

#if RNN_EXT_VECTOR_BYTES == 64
#include "tanh_table.inl"

// One of 30 polynomials of degree 5 for each lane, its coefficients by permutes: 19 instructions where the quotient
// takes 30 and a division, and so 10 cycles a vector where that takes 25.
template <>
RNN_EXT_INLINE Vec<float> tanh<float>(Vec<float> x) {
  namespace t = tanh_table;
  const Bits<float> sign = (Bits<float>)x & (Bits<float>)splat<float>(-0.0f);
  // The lesser; where x is NaN the second operand, and so NaN.
  // (All lanes by mask: GCC warns of the operand that the plain form leaves undefined.)
  const Vec<float> ax =
      (Vec<float>)_mm512_maskz_min_ps(0xffff, (__m512)splat(t::kLast), (__m512)(Vec<float>)((Bits<float>)x ^ sign));
  // Exponent and the first two bits of the mantissa, counted from 2^-4 as 1; 0 for all below. They fit 16 bits, of
  // which subtraction knows to stop at 0.
  const __m512i piece = _mm512_subs_epu16((__m512i)((Unsigned32)ax >> 21), _mm512_set1_epi32((127 - 4) * 4 - 1));
  auto look_up = [=](const float* table) __attribute__((always_inline)) {
    return (Vec<float>)_mm512_permutex2var_ps(_mm512_load_ps(table), piece, _mm512_load_ps(table + 16));
  };
  const Vec<float> r = ax - look_up(t::c);
  Vec<float> p = look_up(t::p5);
  p = p * r + look_up(t::p4);
  p = p * r + look_up(t::p3);
  p = p * r + look_up(t::p2);
  p = p * r + look_up(t::p1);
  p = p * r + look_up(t::y);
  return (Vec<float>)((Bits<float>)p | sign);
}
#endif
