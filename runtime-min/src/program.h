/* program.so (SPEC 6): loaded from a sealed memfd after its hash held there. */
#ifndef EB_PROGRAM_H
#define EB_PROGRAM_H

#include "cpu.h"
#include "crypto.h"
#include "status.h"

typedef void (*eb_kernel_fn)(void *const *args, void *scratch, int32_t begin, int32_t end);

/* What program.so exports as `eb_program`. */
struct eb_program_table {
  uint32_t magic;
  uint32_t abi;
  uint32_t kernel_count;
  uint32_t reserved;
  uint64_t needs;
  eb_kernel_fn kernels[];
};

/* The file stays open as long as its program: the loader knows libraries by name, and /proc/self/fd/N must not come to
 * name another one. */
struct eb_program {
  void *handle;
  int fd;
  const struct eb_program_table *table;
};

/* Loads `image` if its copy, which nobody can change any more, has this hash. `needs` is the manifest's. */
eb_status eb_program_open(struct eb_program *program, eb_bytes image, const uint8_t sha256[EB_SHA256_BYTES],
                          uint64_t needs, const struct eb_cpu *cpu, eb_error *error);

void eb_program_close(struct eb_program *program);

#endif
