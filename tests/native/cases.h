// Random problems for the kernels, what should come out of them in long double, and the comparison.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "recurrence.h"

namespace rnn_ext::test {

enum class Kind { dense, lengths, packed };

// Of the 16-bit formats: a number's value, and the nearest to a value, by the definition of the formats alone.
template <class S>
struct Format {
  static double value(S x) { return x; }
  static S nearest(long double x) { return static_cast<S>(x); }
  static double epsilon() { return std::numeric_limits<S>::epsilon(); }
};
template <class S, int kMantissa, int kExponent>
struct Format16 {
  static constexpr int kBias = (1 << (kExponent - 1)) - 1;
  static double value(S x) {
    const int exponent = x.bits >> kMantissa & ((1 << kExponent) - 1), mantissa = x.bits & ((1 << kMantissa) - 1);
    const double sign = x.bits >> 15 ? -1 : 1;
    if (exponent == (1 << kExponent) - 1) return mantissa ? std::nan("") : sign * HUGE_VAL;
    if (exponent == 0) return sign * std::ldexp(mantissa, 1 - kBias - kMantissa);
    return sign * std::ldexp(mantissa + (1 << kMantissa), exponent - kBias - kMantissa);
  }
  static S nearest(long double x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    constexpr uint16_t kInfinity = ((1 << kExponent) - 1) << kMantissa;
    if (x == 0) return {sign};
    if (std::isnan(x)) return {static_cast<uint16_t>(kInfinity | 1 << (kMantissa - 1))};
    int exponent = 0;
    std::frexp(static_cast<double>(x), &exponent);
    const int unit = std::max(exponent - 1, 1 - kBias) - kMantissa;  // of the last place
    const long double places = std::nearbyintl(std::ldexp(std::abs(x), -unit));
    // Numbers in order are bits in order: a carry into the exponent is the next binade.
    const long double bits = (unit + kMantissa - 1 + kBias) * std::ldexp(1.0L, kMantissa) + places;
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::min<long double>(bits, kInfinity)))};
  }
  static double epsilon() { return std::ldexp(1.0, -kMantissa); }
};
template <>
struct Format<half> : Format16<half, 10, 5> {};
template <>
struct Format<bfloat16> : Format16<bfloat16, 7, 8> {};

// The nearest number of TF32, ties away from zero, by the definition of the format alone.
inline long double nearest_tf32(long double x) {
  int exponent = 0;
  frexpl(x, &exponent);
  const int unit = exponent - 11;  // of the last of 10 places behind the leading bit
  return std::isfinite(x) ? ldexpl(roundl(ldexpl(x, -unit)), unit) : x;
}

template <class T>
struct Case {
  Shape shape;
  Kind kind;
  Epilogue epilogue;
  Seed seed_kind;
  bool transpose;
  bool no_input;
  bool tf32 = false;  // whether what M multiplies, and W, are rounded so
  std::vector<int64_t> direction, length, alive_at, packed_at, order;
  int64_t row_count = 0;  // rows of a sequence tensor
  std::vector<T> weight, input, factor, seed, mask, leak;
  std::unique_ptr<bool[]> resets;      // [T][B], or none
  std::unique_ptr<bool[]> kept;        // the leak, where that is 0 or 1
  std::vector<T> x, w_ih, b_ih, b_hh;  // what the input is made of, where shape.features is not 0; and
  std::vector<long double> projected;  // what it then is

  // For kernels that project their input, some cases have them do so.
  Case(const Shape& s, unsigned random_seed, bool may_project = false) : shape(s) {
    std::mt19937 random(random_seed);
    auto pick = [&](int n) { return static_cast<int>(random() % n); };
    kind = static_cast<Kind>(s.batch ? pick(3) : 0);
    epilogue = static_cast<Epilogue>(pick(5));
    seed_kind = static_cast<Seed>(pick(uses_factor(epilogue) ? 3 : 2));
    transpose = pick(2);
    no_input = uses_factor(epilogue) && pick(4) == 0;
    for (int64_t g = 0; g < s.groups; ++g) direction.push_back(pick(2) ? 1 : -1);
    shape.ragged = kind != Kind::dense;
    length.assign(s.batch, s.time);
    if (kind != Kind::dense) {
      for (auto& l : length) l = 1 + pick(static_cast<int>(s.time));
      if (kind == Kind::packed) {
        std::sort(length.rbegin(), length.rend());
        length[0] = s.time;
      }
      order.resize(s.batch);
      for (int64_t b = 0; b < s.batch; ++b) order[b] = b;
      std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return length[a] > length[b]; });
      for (int64_t t = 0; t < s.time; ++t) {
        packed_at.push_back(row_count);
        alive_at.push_back(std::count_if(length.begin(), length.end(), [&](auto l) { return l > t; }));
        row_count += alive_at.back();
      }
    }
    if (kind != Kind::packed) {
      row_count = s.time * s.batch;
      packed_at.clear();
    } else {
      order.clear();
    }
    std::normal_distribution<double> normal;
    auto fill = [&](std::vector<T>& v, int64_t n, double scale) {
      v.resize(n);
      for (T& x : v) x = Format<T>::nearest(normal(random) * scale);
    };
    fill(weight, s.groups * s.hidden * s.hidden, 1 / std::sqrt(std::max<double>(1, s.hidden)));
    fill(input, row_count * s.groups * s.hidden, 1);
    fill(factor, row_count * s.groups * s.hidden, 0.5);
    fill(seed, s.groups * s.batch * s.hidden, 1);
    if (pick(2)) fill(mask, s.groups * s.batch * s.hidden, 1);
    if (may_leak(epilogue) && pick(2)) {
      if (!uses_factor(epilogue)) transpose = false;
      if (transpose && seed_kind == Seed::state) seed_kind = Seed::product;
      fill(leak, row_count * s.groups * s.hidden, 1);
      for (T& z : leak) z = Format<T>::nearest(std::clamp(Format<T>::value(z), 0.0, 1.0));
      if (pick(2)) kept.reset(new bool[leak.size()]);
      for (size_t i = 0; kept && i < leak.size(); ++i) {
        kept[i] = Format<T>::value(leak[i]) > 0;
        leak[i] = Format<T>::nearest(kept[i]);
      }
    }
    if (kind != Kind::packed && pick(2)) {
      resets.reset(new bool[s.time * s.batch]);
      for (int64_t i = 0; i < s.time * s.batch; ++i) resets[i] = pick(3) == 0;
    }
    if (may_project && sizeof(T) > 2 && !uses_factor(epilogue) && !transpose && pick(2)) {
      shape.features = 1 + pick(pick(2) ? 20 : 150);
      fill(x, row_count * shape.features, 1);
      fill(w_ih, columns() * shape.features, 1 / std::sqrt(shape.features));
      if (pick(3)) fill(b_ih, columns(), 1);
      if (!b_ih.empty()) fill(b_hh, columns(), 1);
      projected.assign(row_count * columns(), 0);
      for (int64_t r = 0; r < row_count; ++r)
        for (int64_t c = 0; c < columns(); ++c) {
          long double& u = projected[r * columns() + c];
          if (!b_ih.empty()) u = static_cast<long double>(Format<T>::value(b_ih[c])) + Format<T>::value(b_hh[c]);
          for (int64_t k = 0; k < shape.features; ++k)
            u += static_cast<long double>(Format<T>::value(w_ih[c * shape.features + k])) *
                 Format<T>::value(x[r * shape.features + k]);
        }
    }
  }

  int64_t columns() const { return shape.groups * shape.hidden; }
  int64_t row(int64_t t, int64_t b) const { return kind == Kind::packed ? packed_at[t] + b : t * shape.batch + b; }
};

template <class T>
struct Result {
  std::vector<T> output, last;
};

// The case on this machine's memory; its results go to `r`, NaN where nothing was written yet.
template <class T>
Problem<T> problem_of(const Case<T>& c, Result<T>& r) {
  const Shape& s = c.shape;
  const T nan = Format<T>::nearest(std::nan(""));
  r = {std::vector<T>(c.row_count * c.columns(), nan), std::vector<T>(c.seed.size(), nan)};
  Problem<T> p;
  p.shape = s;
  if (c.kind != Kind::dense) p.rows.alive_at = c.alive_at.data();
  if (c.kind == Kind::packed) p.rows.packed_at = c.packed_at.data();
  if (c.kind == Kind::lengths) p.rows.order = c.order.data();
  p.rows.resets = c.resets.get();
  p.epilogue = c.epilogue;
  p.seed_kind = c.seed_kind;
  p.transpose = c.transpose;
  p.direction = c.direction.data();
  p.weight = {c.weight.data(), s.hidden, 1};
  auto sequence = [&](auto* data, int64_t columns) {
    return Sequence<std::remove_pointer_t<decltype(data)>>{
        data, c.kind == Kind::packed ? Sequence<T>::kPacked : s.batch * columns, columns};
  };
  if (s.features > 0)
    p.projection = {sequence(c.x.data(), s.features),
                    {c.w_ih.data(), s.features, 1},
                    c.b_ih.empty() ? nullptr : c.b_ih.data(),
                    c.b_ih.empty() ? nullptr : c.b_hh.data()};
  else if (!c.no_input)
    p.input = sequence(c.input.data(), c.columns());
  p.factor = sequence(c.factor.data(), c.columns());
  if (c.kept)
    p.kept = sequence(static_cast<const bool*>(c.kept.get()), c.columns());
  else if (!c.leak.empty())
    p.leak = sequence(c.leak.data(), c.columns());
  p.seed = {c.seed.data(), s.batch * s.hidden, s.hidden};
  if (!c.mask.empty()) p.mask = {c.mask.data(), s.batch * s.hidden, s.hidden};
  p.output = sequence(r.output.data(), c.columns());
  p.last = {r.last.data(), s.batch * s.hidden, s.hidden};
  return p;
}

// docs/mathematics.md, (R) and (L), as they stand there, each state rounded to the format; in TF32 what is multiplied.
template <class T>
Result<long double> expected(const Case<T>& c) {
  const Shape& s = c.shape;
  const auto value = Format<T>::value;
  const auto factor_of = [&](long double x) { return c.tf32 ? nearest_tf32(x) : x; };
  Result<long double> r{std::vector<long double>(c.row_count * c.columns()), std::vector<long double>(c.seed.size())};
  std::vector<long double> state(s.hidden), taken(s.hidden), next(s.hidden);
  for (int64_t g = 0; g < s.groups; ++g) {
    const T* w = c.weight.data() + g * s.hidden * s.hidden;
    for (int64_t b = 0; b < s.batch; ++b) {
      const T* seed = c.seed.data() + (g * s.batch + b) * s.hidden;
      for (int64_t k = 0; k < s.hidden; ++k) state[k] = c.seed_kind == Seed::state ? value(seed[k]) : 0;
      for (int64_t n = 0; n < c.length[b]; ++n) {
        const bool forward = c.direction[g] > 0;
        const int64_t t = forward ? n : c.length[b] - 1 - n;
        if (n > 0 && c.resets && c.resets[(forward ? t : t + 1) * s.batch + b])
          std::fill(state.begin(), state.end(), 0);
        auto mask = [&](int64_t k) {
          return c.mask.empty() ? 1.0L : static_cast<long double>(value(c.mask[(g * s.batch + b) * s.hidden + k]));
        };
        const int64_t at = c.row(t, b) * c.columns() + g * s.hidden;
        // A transposed call with a leak takes leak and factor of the step before.
        const bool leaks = !c.leak.empty(), scaled = leaks && c.transpose;
        const int64_t from = scaled && n > 0 ? c.row(forward ? t - 1 : t + 1, b) * c.columns() + g * s.hidden : at;
        // M = W diag(mask) or its transpose; a 16-bit state is rounded when it is masked or scaled.
        auto multiplied = [&](int64_t k) {
          if (!scaled && (c.transpose || c.mask.empty())) return factor_of(state[k]);
          const long double changed = state[k] * (scaled ? value(c.factor[from + k]) : mask(k));
          return sizeof(T) == 2 ? static_cast<long double>(value(Format<T>::nearest(changed))) : factor_of(changed);
        };
        for (int64_t k = 0; k < s.hidden; ++k) taken[k] = multiplied(k);
        for (int64_t j = 0; j < s.hidden; ++j) {
          const bool seeded = n == 0 && c.seed_kind == Seed::product;
          long double sum = seeded ? value(seed[j]) : 0;
          for (int64_t k = 0; k < s.hidden && !seeded; ++k)
            sum += (c.transpose ? mask(j) * factor_of(value(w[k * s.hidden + j]))
                                : factor_of(value(w[j * s.hidden + k]))) *
                   taken[k];
          const long double in = c.no_input ? 0 : c.projected.empty() ? value(c.input[at + j]) : c.projected[at + j];
          const long double a = in + sum, f = value(c.factor[at + j]);
          switch (c.epilogue) {
            case Epilogue::tanh: next[j] = tanhl(a); break;
            case Epilogue::relu: next[j] = std::max(a, 0.0L); break;
            case Epilogue::tanh_derivative: next[j] = (1 - f * f) * a; break;
            case Epilogue::relu_derivative: next[j] = f > 0 ? a : 0; break;
            case Epilogue::given_derivative: next[j] = f * a; break;
          }
          if (leaks) {
            const long double z = value(c.leak[from + j]);
            if (!uses_factor(c.epilogue))
              next[j] = z * state[j] + (1 - z) * next[j];
            else
              next[j] = in + (seeded ? sum : z * state[j] + (c.transpose ? sum : f * sum));
          }
        }
        for (int64_t j = 0; j < s.hidden; ++j) state[j] = sizeof(T) == 2 ? value(Format<T>::nearest(next[j])) : next[j];
        for (int64_t j = 0; j < s.hidden; ++j) r.output[at + j] = state[j];
      }
      for (int64_t j = 0; j < s.hidden; ++j) r.last[(g * s.batch + b) * s.hidden + j] = state[j];
    }
  }
  return r;
}

template <class T>
int compare(const std::vector<T>& got, const std::vector<long double>& want, const Case<T>& c, const char* what,
            const char* how) {
  // A sum of H products of size 1/sqrt(H) each, and of I likewise, over T steps that at most pass an error on (|phi'|
  // <= 1, and W near orthogonal): H roundings a step, T steps, relative to states of size up to about 10. In 16 bits
  // sums have float's error, and a state that it tips to the other side is off by one place of the format; so it is in
  // TF32 to whoever multiplies it, of 10 places.
  const bool tips = sizeof(T) == 2 || c.tf32;
  const double roundings = tips ? 2 : 10 * (c.shape.hidden + c.shape.features + 4);
  const double bound = roundings * (c.shape.time + 1) * (c.tf32 ? std::ldexp(1.0, -10) : Format<T>::epsilon());
  double scale = 1;
  for (long double x : want) scale = std::max<double>(scale, std::abs(static_cast<double>(x)));
  for (size_t i = 0; i < got.size(); ++i)
    CHECK(std::abs(static_cast<double>(Format<T>::value(got[i]) - want[i])) <= bound * scale,
          "%s %s T=%ld B=%ld G=%ld H=%ld I=%ld epilogue %d seed %d layout %d leak %d transpose %d: element %zu is "
          "%.9g, should be %.9Lg",
          how, what, long(c.shape.time), long(c.shape.batch), long(c.shape.groups), long(c.shape.hidden),
          long(c.shape.features), int(c.epilogue), int(c.seed_kind), int(c.kind), int(!c.leak.empty()),
          int(c.transpose), i, Format<T>::value(got[i]), want[i]);
  return failures;
}

}  // namespace rnn_ext::test
