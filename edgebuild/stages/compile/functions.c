// Functions of one float, for operators that TVM lowers. Computed in double without fused operations, so that every CPU
// gives the same bits; the error is far below half a float's last place, but not proved to round correctly always.
#include <stdint.h>
#pragma STDC FP_CONTRACT OFF

#define NOT_A_NUMBER __builtin_nanf("")
#define INFINITE __builtin_inff()
static const double kPi = 3.14159265358979323846, kLn2 = 0.69314718055994530942;

static double from_bits(uint64_t bits) {
  union { uint64_t bits; double value; } u = {bits};
  return u.value;
}

static uint64_t to_bits(double value) {
  union { double value; uint64_t bits; } u = {value};
  return u.bits;
}

static double absolute(double x) { return __builtin_fabs(x); }
static double root(double x) { return __builtin_elementwise_sqrt(x); }
static double rounded(double x) { return (x + 0x1.8p52) - 0x1.8p52; }  // |x| < 2^51

// c[0] + c[1]·x + …
static double polynomial(double x, const double *c, int count) {
  double sum = c[count - 1];
  for (int i = count - 2; i >= 0; i--) sum = sum * x + c[i];
  return sum;
}

// Beyond ±800 any float is infinite or zero.
static double exponential(double x) {
  static const double kSeries[] = {1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,      1.0 / 720,
                                   1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600};
  if (x != x) return x;
  if (x > 700) return __builtin_inf();
  if (x < -700) return 0;
  double n = rounded(x * 1.44269504088896340736);
  double r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
  return polynomial(r, kSeries, 13) * from_bits((uint64_t)(1023 + (int64_t)n) << 52);
}

static double logarithm(double x) {
  if (x != x || x < 0) return NOT_A_NUMBER;
  if (x == 0) return -INFINITE;
  if (x == INFINITE) return x;
  uint64_t bits = to_bits(x);  // a float is a normal number here, also where it was none
  int64_t exponent = (int64_t)(bits >> 52) - 1023;
  double m = from_bits((bits & 0xfffffffffffff) | 0x3ff0000000000000);
  if (m > 1.41421356237309504880) m /= 2, exponent++;
  double s = (m - 1) / (m + 1), square = s * s, sum = 0;
  for (int k = 21; k > 0; k -= 2) sum = sum * square + 1.0 / k;
  return 2 * s * sum + (double)exponent * kLn2;
}

static double arc_tangent(double x) {
  double a = absolute(x), y = a > 1 ? 1 / a : a, sum = 0;
  if (x != x) return x;
  for (int i = 0; i < 2; i++) y /= 1 + root(1 + y * y);
  for (int k = 23; k > 0; k -= 2) sum = sum * -(y * y) + 1.0 / k;
  sum = 4 * y * sum;
  return __builtin_copysign(a > 1 ? kPi / 2 - sum : sum, x);
}

static double arc_tangent2(double y, double x) {
  if (x != x || y != y) return NOT_A_NUMBER;
  double a = absolute(x), b = absolute(y), angle;
  if (a == 0 && b == 0) angle = 0;
  else if (a == INFINITE && b == INFINITE) angle = kPi / 4;
  else angle = b > a ? kPi / 2 - arc_tangent(a / b) : arc_tangent(b / a);
  return __builtin_copysign(__builtin_signbit(x) ? kPi - angle : angle, y);
}

// 2/π from its first bit on.
static const uint32_t kTwoOverPi[] = {0xa2f9836e, 0x4e441529, 0xfc2757d1, 0xf534ddc0, 0xdb629599, 0x3c439041, 0xfe5163ab, 0xdebbc561};

static uint32_t bits_from(int place) {
  uint64_t pair = (uint64_t)kTwoOverPi[place / 32] << 32 | kTwoOverPi[place / 32 + 1];
  return (uint32_t)(pair << place % 32 >> 32);
}

// x − q·π/2 in [−π/4, π/4]; returns q modulo 4.
static int quadrant(float value, double *rest) {
  double x = value;
  if (absolute(x) < 0x1p25) {  // q · 29 bits are exact
    double n = rounded(x * 0.63661977236758134308);
    *rest = ((x - n * 0x1.921fb54p0) - n * 0x1.10b461p-30) - n * 0x1.a62633145c06ep-58;
    return (int)((int64_t)n & 3);
  }
  uint64_t bits = to_bits(absolute(x)), m = ((bits & 0xfffffffffffff) | 0x10000000000000) >> 29;
  int first = (int)(bits >> 52) - 1023 - 23 - 2;  // bits of 2/π before it make multiples of four quadrants
  uint64_t turn = (m * bits_from(first) << 32) + m * bits_from(first + 32) + (m * bits_from(first + 64) >> 32);
  uint64_t q = (turn + (1ull << 61)) >> 62;
  *rest = (double)(int64_t)(turn - (q << 62)) * (kPi / 2 * 0x1p-62);
  if (x < 0) *rest = -*rest, q = 4 - q;
  return (int)(q & 3);
}

static double sine(double r) {
  static const double kSeries[] = {1.0, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800, -1.0 / 1307674368000};
  return r * polynomial(r * r, kSeries, 8);
}

static double cosine(double r) {
  static const double kSeries[] = {1.0,           -1.0 / 2,         1.0 / 24,          -1.0 / 720,           1.0 / 40320,
                                   -1.0 / 3628800, 1.0 / 479001600, -1.0 / 87178291200, 1.0 / 20922789888000};
  return polynomial(r * r, kSeries, 9);
}

static float wave(float x, int shift) {
  double r;
  if (!(absolute(x) < INFINITE)) return NOT_A_NUMBER;
  int q = (quadrant(x, &r) + shift) & 3;
  double value = q & 1 ? cosine(r) : sine(r);
  return (float)(q & 2 ? -value : value);
}

float eb_sin(float x) { return x == 0 ? x : wave(x, 0); }
float eb_cos(float x) { return wave(x, 1); }
float eb_tan(float x) {
  double r;
  if (x == 0) return x;
  if (!(absolute(x) < INFINITE)) return NOT_A_NUMBER;
  int q = quadrant(x, &r);
  return (float)(q & 1 ? -cosine(r) / sine(r) : sine(r) / cosine(r));
}

float eb_exp(float x) { return (float)exponential(x); }
float eb_log(float x) { return (float)logarithm(x); }

static double hyperbolic_sine(double x) {
  if (absolute(x) < 0.1) return x * (1 + x * x * (1.0 / 6 + x * x * (1.0 / 120 + x * x / 5040)));
  return (exponential(x) - exponential(-x)) / 2;
}

float eb_sinh(float x) { return (float)hyperbolic_sine(x); }
float eb_cosh(float x) { return (float)((exponential(x) + exponential(-(double)x)) / 2); }
float eb_asinh(float value) {
  double x = value, a = absolute(x);
  if (a < 1e-2) return (float)(x * (1 - x * x * (1.0 / 6 - x * x * 3.0 / 40)));
  return (float)__builtin_copysign(logarithm(a + root(a * a + 1)), x);
}
float eb_acosh(float x) { return (float)logarithm(x < 1 ? -1 : x + root((x - 1.0) * (x + 1.0))); }
float eb_atanh(float value) {
  double x = value;
  if (absolute(x) < 1e-2) return (float)(x * (1 + x * x * (1.0 / 3 + x * x / 5)));
  if (absolute(x) > 1) return NOT_A_NUMBER;
  return (float)(logarithm((1 + x) / (1 - x)) / 2);
}
float eb_atan(float x) { return (float)arc_tangent(x); }
float eb_asin(float x) { return (float)(absolute(x) > 1 ? NOT_A_NUMBER : arc_tangent2(x, root((1.0 - x) * (1.0 + x)))); }
float eb_acos(float x) { return (float)(absolute(x) > 1 ? NOT_A_NUMBER : arc_tangent2(root((1.0 - x) * (1.0 + x)), x)); }

float eb_fmod(float value, float divisor) {
  double r = absolute(value), d = absolute(divisor);
  if (!(r < INFINITE) || d != d || d == 0) return NOT_A_NUMBER;
  if (d == INFINITE) return value;
  int steps = (int)(to_bits(r) >> 52) - (int)(to_bits(d) >> 52);
  for (int k = steps; k >= 0; k--) {
    double part = d * from_bits((uint64_t)(1023 + k) << 52);
    if (r >= part) r -= part;
  }
  return __builtin_copysignf((float)r, value);
}

float eb_pow(float base, float exponent) {
  double x = absolute(base), y = exponent;
  if (y == 0 || base == 1) return 1;
  if (x != x || y != y) return NOT_A_NUMBER;
  if (x == 1 && absolute(y) == INFINITE) return 1;
  int whole = absolute(y) >= 0x1p24 || (double)(int64_t)y == y;
  int odd = whole && absolute(y) < 0x1p24 && ((int64_t)y & 1);
  double power = x == 0 ? (y < 0 ? INFINITE : 0) : x == INFINITE ? (y < 0 ? 0 : INFINITE) : exponential(y * logarithm(x));
  if (__builtin_signbit(base)) {
    if (!whole && x != 0 && x != INFINITE) return NOT_A_NUMBER;
    if (odd) power = -power;
  }
  return (float)power;
}
