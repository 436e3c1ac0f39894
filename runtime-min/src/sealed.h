/* Code that is loaded or executed: a sealed memfd, whose contents nobody can change between check and use. */
#ifndef EB_SEALED_H
#define EB_SEALED_H

#include "cpu.h"
#include "crypto.h"
#include "status.h"

/* A descriptor, close-on-exec, of a file with the bytes of `image`, if its copy has this hash. `name` is for messages
 * and /proc. */
eb_status eb_sealed_open(const char *name, eb_bytes image, const uint8_t sha256[EB_SHA256_BYTES],
                         const struct eb_cpu *cpu, int *fd, eb_error *error);

#endif
