/* Ed25519, BLAKE2b and SHA-256 from libsodium, and SHA-256 with the processor's own instructions. */
#ifndef EB_CRYPTO_H
#define EB_CRYPTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EB_SHA256_BYTES 32u

/* `accelerated`: this processor has SHA-256 instructions (eb_cpu.sha256). The digest is the same either way. */
void eb_sha256(bool accelerated, const void *data, size_t size, uint8_t digest[EB_SHA256_BYTES]);

void eb_blake2b_512(const void *data, size_t size, uint8_t digest[64]);

bool eb_ed25519_verify(const uint8_t signature[64], const void *message, size_t size, const uint8_t key[32]);

#endif
