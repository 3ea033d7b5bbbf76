// The 16-bit formats, one number at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace cuda_emulator {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bfloat16(uint16_t bits) { return bits_to_float(static_cast<uint32_t>(bits) << 16); }

// To nearest, ties to even; the NaN is cvt's.
inline uint16_t to_bfloat16(float x) {
  const uint32_t u = float_to_bits(x);
  return x == x ? static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16) : uint16_t{0x7fff};
}

// half is 1 + 5 + 10 bits, exponent bias 15.
inline float from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return exponent ? sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25)
                  : sign * std::ldexp(static_cast<float>(mantissa), -24);
}

inline uint16_t to_half(float x) {
  if (x != x) return 0x7fff;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (magnitude == 0) return sign;
  if (magnitude >= 65520.0f) return sign | 0x7c00;  // half a last place above the largest number
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int unit = (exponent - 1 < -14 ? -14 : exponent - 1) - 10;  // of the last place
  const int places = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -unit)));
  // Numbers in order are bits in order: a carry into the exponent is the next binade.
  return static_cast<uint16_t>(sign | ((unit + 24) * 1024 + places));
}

}  // namespace cuda_emulator
