#include "cpu.h"

#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__riscv) && __riscv_xlen == 64
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
#else
#error "edgebuild-run is made for x86_64, aarch64 and riscv64"
#endif

#define FEATURES_MAX 24

static const char *const arch_names[EB_ARCH_COUNT] = {"x86_64", "aarch64", "riscv64"};

static const char *const names[EB_ARCH_COUNT][FEATURES_MAX] = {
    [EB_ARCH_X86_64] = {"avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe", "avx512f", "avx512bw", "avx512cd",
                        "avx512dq", "avx512vl", "avx512vnni", "avxvnni", "avx512vbmi"},
    [EB_ARCH_AARCH64] = {"neon", "dotprod", "i8mm", "lse", "rdm", "crc", "aes", "sha2", "fp16", "rcpc"},
    [EB_ARCH_RISCV64] = {"zba", "zbb", "zbs", "zicond", "v", "zvl256b"},
};

const char *eb_arch_name(enum eb_arch arch) {
  return arch_names[arch];
}

const char *eb_feature_name(enum eb_arch arch, unsigned bit) {
  return bit < FEATURES_MAX ? names[arch][bit] : NULL;
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
      zmm && seven.ecx >> 11 & 1, ymm && seven1.eax >> 4 & 1, zmm && seven.ecx >> 1 & 1,
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

#elif defined(__aarch64__)

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

#else

#define SYS_HWPROBE 258         /* riscv_hwprobe, Linux 6.4 (uapi/asm/hwprobe.h); not in old headers */
#define HWPROBE_KEY_IMA_EXT_0 4 /* which extensions every processor has */

struct hwprobe {
  int64_t key;
  uint64_t value;
};

/* False where the kernel does not know the call. */
static bool probe_extensions(uint64_t *extensions) {
  struct hwprobe pair = {.key = HWPROBE_KEY_IMA_EXT_0};
  long failed = syscall(SYS_HWPROBE, &pair, 1, 0, NULL, 0);
  *extensions = failed || pair.key != HWPROBE_KEY_IMA_EXT_0 ? 0 : pair.value;
  return !failed;
}

/* Vendors' kernels before 6.5 report V for the draft 0.7.1 as well, whose encoding is another; from 6.5 on V is 1.0. */
static bool kernel_knows_vectors(void) {
  struct utsname name;
  if (uname(&name)) return false;
  char *rest;
  unsigned long major = strtoul(name.release, &rest, 10), minor = *rest == '.' ? strtoul(rest + 1, NULL, 10) : 0;
  return major > 6 || (major == 6 && minor >= 5);
}

static bool has_vectors(bool probed, uint64_t extensions) {
  bool reported = getauxval(AT_HWCAP) >> ('v' - 'a') & 1;
  return reported && (probed ? extensions >> 2 & 1 : kernel_knows_vectors());
}

/* Bytes of a vector register; only where the kernel lets programs use vectors. */
static unsigned long vector_bytes(void) {
  unsigned long bytes;
  __asm__ volatile("csrr %0, 0xc22" : "=r"(bytes)); /* vlenb */
  return bytes;
}

void eb_cpu_detect(struct eb_cpu *cpu) {
  uint64_t extensions;
  bool probed = probe_extensions(&extensions), vectors = has_vectors(probed, extensions);
  const bool present[] = {
      extensions >> 3 & 1,
      extensions >> 4 & 1,
      extensions >> 5 & 1,
      extensions >> 35 & 1,
      vectors,
      vectors && vector_bytes() >= 32,
  };
  *cpu = (struct eb_cpu){.arch = EB_ARCH_RISCV64};
  for (unsigned bit = 0; bit < sizeof present / sizeof *present; bit++) {
    cpu->features |= (uint64_t)present[bit] << bit;
  }
}

/* Denormals are always kept; frm is the rounding mode, 0 to nearest even. */
uint64_t eb_float_enter(void) {
  uint64_t saved;
  __asm__ volatile("fsrmi %0, 0" : "=r"(saved));
  return saved;
}

void eb_float_leave(uint64_t saved) {
  __asm__ volatile("fsrm %0" : : "r"(saved));
}

#endif
