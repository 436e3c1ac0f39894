/* What this machine's processor can do (SPEC 6). */
#ifndef EB_CPU_H
#define EB_CPU_H

#include <stdbool.h>
#include <stdint.h>

enum eb_arch { EB_ARCH_X86_64, EB_ARCH_AARCH64, EB_ARCH_RISCV64, EB_ARCH_COUNT };

struct eb_cpu {
  enum eb_arch arch;
  uint64_t features; /* SPEC 6's bits */
  bool sha256;       /* has instructions for SHA-256 */
};

void eb_cpu_detect(struct eb_cpu *cpu);

const char *eb_arch_name(enum eb_arch arch);

/* Name of feature `bit`, or NULL past the last one. */
const char *eb_feature_name(enum eb_arch arch, unsigned bit);

/* Bit of a feature, or -1 when this runtime does not know it. */
int eb_feature_bit(enum eb_arch arch, const char *name);

/* The default floating-point environment (round to nearest even, denormals kept) for SPEC 8; returns the one to
 * restore. */
uint64_t eb_float_enter(void);
void eb_float_leave(uint64_t saved);

/* Tells the processor that this is a loop that waits. */
static inline void eb_cpu_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#else
  __asm__ volatile(".insn 0x0100000f"); /* pause; processors without Zihintpause take it for a fence of nothing */
#endif
}

#endif
