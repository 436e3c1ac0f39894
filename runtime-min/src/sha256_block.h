/* SHA-256's compression function on x86 SHA-NI or ARMv8 SHA2 instructions, where EB_SHA256_BLOCKS is defined; call it
 * only where eb_cpu.sha256 is set. */
#ifndef EB_SHA256_BLOCK_H
#define EB_SHA256_BLOCK_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(__aarch64__)
#define EB_SHA256_BLOCKS 1

void eb_sha256_blocks(uint32_t state[8], const uint8_t *data, size_t blocks);

#endif

#endif
