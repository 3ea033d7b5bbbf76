// tanh of every float32 is within 2 ULP, on every instruction set that this machine runs.
//
// The oracle for 2^32 values must be fast: it is the float64 tanh of the best instruction set, which is
// itself held against the C library's tanhl first.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/isa.h"

using namespace rnn_ext;

namespace {

float float_of(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Distance between neighbouring floats at `exact`: its power of two, by masking the exponent, over 2^23.
double ulp(double exact) {
  const float rounded = static_cast<float>(exact);
  uint32_t bits;
  std::memcpy(&bits, &rounded, 4);
  return std::max(float_of(bits & 0x7f800000u), std::numeric_limits<float>::min()) * 0x1p-23;
}

int check_double(const Isa& isa) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponent(-320, 1.5), sign(-1, 1);
  std::vector<double> x(1 << 20), y(x.size());
  for (double& v : x) v = std::copysign(std::pow(10.0, exponent(random)), sign(random));
  for (size_t i = 0; i < 1000; ++i) x[i] = -0.4 + 0.0008 * static_cast<double>(i);
  isa.tanh_f64(x.data(), y.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const long double exact = tanhl(x[i]);
    const double step = std::max(std::ldexp(1.0, std::ilogb(static_cast<double>(exact)) - 52),
                                 std::numeric_limits<double>::denorm_min());
    CHECK(std::abs(static_cast<double>(y[i] - exact)) <= 3 * step, "%s: tanh(%.17g) = %.17g, exactly %.17Lg", isa.name,
          x[i], y[i], exact);
  }
  return failures;
}

int check_special(const Isa& isa) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float x[] = {0.0f, -0.0f, inf, -inf, nan, -nan, 1e30f, -1e30f, 1e-45f, -1e-45f};
  float y[10];
  isa.tanh_f32(x, y, 10);
  CHECK(y[0] == 0 && !std::signbit(y[0]) && y[1] == 0 && std::signbit(y[1]), "%s: signed zeros", isa.name);
  CHECK(y[2] == 1 && y[3] == -1 && y[6] == 1 && y[7] == -1, "%s: saturation", isa.name);
  CHECK(std::isnan(y[4]) && std::isnan(y[5]), "%s: NaN", isa.name);
  CHECK(y[8] == x[8] && y[9] == x[9], "%s: denormals", isa.name);
  return failures;
}

// Largest error in ULP over all positive finite floats; odd symmetry is checked on the way.
double worst_float(const Isa& isa, const Isa& oracle, uint32_t* where) {
  constexpr uint32_t kEnd = 0x7f800000, kChunk = 1 << 14;
  std::atomic<uint32_t> next{0};
  std::vector<std::thread> threads;
  std::vector<std::pair<double, uint32_t>> worst(std::max(1u, std::thread::hardware_concurrency()));
  for (auto& mine : worst) {
    threads.emplace_back([&] {
      std::vector<float> x(kChunk), y(kChunk), z(kChunk);
      std::vector<double> wide(kChunk), exact(kChunk);
      for (uint32_t start; (start = next.fetch_add(kChunk)) < kEnd;) {
        for (uint32_t i = 0; i < kChunk; ++i) {
          x[i] = float_of(start + i);
          wide[i] = x[i];
        }
        isa.tanh_f32(x.data(), y.data(), kChunk);
        oracle.tanh_f64(wide.data(), exact.data(), kChunk);
        for (float& v : x) v = -v;
        isa.tanh_f32(x.data(), z.data(), kChunk);
        for (uint32_t i = 0; i < kChunk; ++i) {
          const double scaled = std::abs(y[i] - exact[i]) / ulp(exact[i]);
          const double error = z[i] == -y[i] ? scaled : std::numeric_limits<double>::infinity();
          if (error > mine.first) mine = {error, start + i};
        }
      }
    });
  }
  for (auto& t : threads) t.join();
  const auto most = *std::max_element(worst.begin(), worst.end());
  *where = most.second;
  return most.first;
}

}  // namespace

int main() {
  const Isa* best = nullptr;
  for (const Isa* isa : compiled_isas()) {
    if (!isa->supported()) continue;
    best = isa;
    if (check_double(*isa) || check_special(*isa)) return 1;
  }
  void (*done)(const float*, float*, int64_t) = nullptr;
  for (const Isa* isa : compiled_isas()) {
    // The last ones are the one before with another kernel for bfloat16.
    if (!isa->supported() || isa->tanh_f32 == done) continue;
    done = isa->tanh_f32;
    uint32_t where = 0;
    const double error = worst_float(*isa, *best, &where);
    std::printf("%-9s tanh float32: at most %.3f ULP, at %.9g\n", isa->name, error, float_of(where));
    CHECK(error <= 2, "%s: %.3f ULP at %.9g", isa->name, error, float_of(where));
  }
  return failures != 0;
}
