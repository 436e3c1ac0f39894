#include "cpu.h"

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#else
#error "edgebuild-run is made for x86_64 and aarch64"
#endif

static const char *const names[EB_ARCH_COUNT][16] = {
    [EB_ARCH_X86_64] = {"avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe", "avx512f", "avx512bw", "avx512cd",
                        "avx512dq", "avx512vl", "avx512vnni", "avxvnni"},
    [EB_ARCH_AARCH64] = {"neon", "dotprod", "i8mm", "lse", "rdm", "crc", "aes", "sha2", "fp16", "rcpc"},
};

const char *eb_arch_name(enum eb_arch arch) {
  return arch == EB_ARCH_X86_64 ? "x86_64" : "aarch64";
}

const char *eb_feature_name(enum eb_arch arch, unsigned bit) {
  return bit < sizeof names[0] / sizeof names[0][0] ? names[arch][bit] : NULL;
}

int eb_feature_bit(enum eb_arch arch, const char *name) {
  for (unsigned bit = 0; eb_feature_name(arch, bit); bit++) {
    if (strcmp(names[arch][bit], name) == 0) return (int)bit;
  }
  return -1;
}

#if defined(__x86_64__)

struct leaf {
  unsigned eax, ebx, ecx, edx;
};

static struct leaf cpuid(unsigned function, unsigned index) {
  struct leaf l = {0};
  __get_cpuid_count(function, index, &l.eax, &l.ebx, &l.ecx, &l.edx);
  return l;
}

static uint64_t xcr0(void) {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

void eb_cpu_detect(struct eb_cpu *cpu) {
  struct leaf one = cpuid(1, 0), seven = cpuid(7, 0), seven1 = cpuid(7, 1), extended = cpuid(0x80000001u, 0);
  bool osxsave = one.ecx >> 27 & 1;
  uint64_t saved = osxsave ? xcr0() : 0;
  bool ymm = (saved & 0x06) == 0x06, zmm = (saved & 0xe6) == 0xe6; /* SSE, AVX, opmask, ZMM_Hi256, Hi16_ZMM */
  const bool present[] = {
      ymm && seven.ebx >> 5 & 1,  ymm && one.ecx >> 12 & 1,   seven.ebx >> 3 & 1,         seven.ebx >> 8 & 1,
      ymm && one.ecx >> 29 & 1,   extended.ecx >> 5 & 1,      one.ecx >> 22 & 1,          zmm && seven.ebx >> 16 & 1,
      zmm && seven.ebx >> 30 & 1, zmm && seven.ebx >> 28 & 1, zmm && seven.ebx >> 17 & 1, zmm && seven.ebx >> 31 & 1,
      zmm && seven.ecx >> 11 & 1, ymm && seven1.eax >> 4 & 1,
  };
  *cpu = (struct eb_cpu){.arch = EB_ARCH_X86_64};
  for (unsigned bit = 0; bit < sizeof present / sizeof *present; bit++) {
    cpu->features |= (uint64_t)present[bit] << bit;
  }
  cpu->sha256 = (seven.ebx >> 29 & 1) && (one.ecx >> 19 & 1) && (one.ecx >> 9 & 1); /* SHA, SSE4.1, SSSE3 */
}

uint64_t eb_float_enter(void) {
  uint64_t saved = _mm_getcsr();
  _mm_setcsr(0x1f80);
  return saved;
}

void eb_float_leave(uint64_t saved) {
  _mm_setcsr((unsigned)saved);
}

#else

void eb_cpu_detect(struct eb_cpu *cpu) {
  unsigned long one = getauxval(AT_HWCAP), two = getauxval(AT_HWCAP2);
  /* Linux uapi/asm/hwcap.h; toolchains with old headers lack the newer names. */
  const bool present[] = {
      one >> 1 & 1,  one >> 20 & 1, two >> 13 & 1,
      one >> 8 & 1,  one >> 12 & 1, one >> 7 & 1,
      one >> 3 & 1,  one >> 6 & 1,  (one >> 9 & 1) & (one >> 10 & 1),
      one >> 15 & 1,
  };
  *cpu = (struct eb_cpu){.arch = EB_ARCH_AARCH64, .sha256 = one >> 6 & 1};
  for (unsigned bit = 0; bit < sizeof present / sizeof *present; bit++) {
    cpu->features |= (uint64_t)present[bit] << bit;
  }
}

uint64_t eb_float_enter(void) {
  uint64_t saved;
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
  if (saved) __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
  return saved;
}

void eb_float_leave(uint64_t saved) {
  if (saved) __asm__ volatile("msr fpcr, %0" : : "r"(saved));
}

#endif
