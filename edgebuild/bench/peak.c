/* What this core could do at most: `peak dot` prints giga multiply-accumulates a second of chains of independent dot
 * products, `peak read BYTES` gigabytes a second of reading a block of memory again and again. The best of several trials.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(EDGEBUILD_AVX512VNNI) || defined(EDGEBUILD_AVXVNNI) || defined(EDGEBUILD_AVX2)
#include <immintrin.h>
#elif defined(EDGEBUILD_DOTPROD) || defined(EDGEBUILD_NEON) || defined(EDGEBUILD_I8MM)
#include <arm_neon.h>
#endif

#define CHAINS 12 /* hides the latency of every core we know: at most 5 cycles at two a cycle */
#define STEPS 200000
#define TRIALS 15

#if defined(EDGEBUILD_AVX512VNNI)
typedef __m512i vector;
#define MACS 64
#define STEP(acc, a, b) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b))
#elif defined(EDGEBUILD_AVXVNNI)
typedef __m256i vector;
#define MACS 32
#define STEP(acc, a, b) __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b))
#elif defined(EDGEBUILD_AVX2)
typedef __m256i vector;
#define MACS 16
/* The multiply alone: the sum that it lacks costs another port. */
#define STEP(acc, a, b) __asm__ volatile("vpmaddwd %1, %0, %0" : "+x"(acc) : "x"(a))
#elif defined(EDGEBUILD_I8MM)
typedef int32x4_t vector;
#define MACS 32
#define STEP(acc, a, b) __asm__ volatile("usmmla %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(a), "w"(b))
#elif defined(EDGEBUILD_DOTPROD)
typedef int32x4_t vector;
#define MACS 16
#define STEP(acc, a, b) __asm__ volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(a), "w"(b))
#elif defined(EDGEBUILD_NEON)
typedef int32x4_t vector;
#define MACS 4
#define STEP(acc, a, b) __asm__ volatile("smlal %0.4s, %1.4h, %2.4h" : "+w"(acc) : "w"(a), "w"(b))
#else
typedef int32_t vector;
#define MACS 1
#define STEP(acc, a, b) __asm__ volatile("" : "+r"(acc) : "r"((acc) += (a) * (b)))
#endif

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double dot_once(void) {
  vector acc[CHAINS], a, b;
  memset(acc, 0, sizeof acc);
  memset(&a, 1, sizeof a);
  memset(&b, 1, sizeof b);
  double start = seconds();
  for (long step = 0; step < STEPS; step++) {
    STEP(acc[0], a, b);
    STEP(acc[1], a, b);
    STEP(acc[2], a, b);
    STEP(acc[3], a, b);
    STEP(acc[4], a, b);
    STEP(acc[5], a, b);
    STEP(acc[6], a, b);
    STEP(acc[7], a, b);
    STEP(acc[8], a, b);
    STEP(acc[9], a, b);
    STEP(acc[10], a, b);
    STEP(acc[11], a, b);
  }
  double elapsed = seconds() - start;
  return (double)STEPS * CHAINS * MACS / elapsed * 1e-9;
}

typedef uint64_t words __attribute__((vector_size(64)));

static double read_once(const words *data, size_t count) {
  words sum[4] = {{0}};
  size_t passes = (size_t)(64u << 20) / (count * sizeof *data) + 1;
  double start = seconds();
  for (size_t pass = 0; pass < passes; pass++) {
    for (size_t i = 0; i + 4 <= count; i += 4) {
      sum[0] ^= data[i];
      sum[1] ^= data[i + 1];
      sum[2] ^= data[i + 2];
      sum[3] ^= data[i + 3];
    }
    __asm__ volatile("" : "+m"(sum) : : "memory");
  }
  double elapsed = seconds() - start;
  return (double)passes * (double)(count * sizeof *data) / elapsed * 1e-9;
}

int main(int argc, char **argv) {
  double best = 0;
  size_t bytes = argc > 2 ? (size_t)strtoull(argv[2], NULL, 10) : 0;
  words *data = bytes ? aligned_alloc(64, bytes) : NULL;
  if (bytes && !data) return 1;
  if (data) memset(data, 1, bytes);
  for (int trial = 0; trial < TRIALS; trial++) {
    double found = data ? read_once(data, bytes / sizeof *data) : dot_once();
    if (found > best) best = found;
  }
  printf("%.3f\n", best);
  free(data);
  return 0;
}
