/* Ed25519, BLAKE2b and SHA-256 from libsodium, and SHA-256 with the processor's own instructions. */
#ifndef EB_CRYPTO_H
#define EB_CRYPTO_H

#include <sodium/crypto_hash_sha256.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EB_SHA256_BYTES 32u

/* A SHA-256 of bytes that come in parts. */
struct eb_sha256 {
  bool accelerated;
  uint64_t bytes;
  uint32_t state[8];
  crypto_hash_sha256_state portable;
};

/* `accelerated`: this processor has SHA-256 instructions (eb_cpu.sha256). The digest is the same either way. */
void eb_sha256_begin(struct eb_sha256 *hash, bool accelerated);

/* `size` is a multiple of 64. */
void eb_sha256_add(struct eb_sha256 *hash, const void *data, size_t size);

/* The last part, of any size, and the digest of all. */
void eb_sha256_end(struct eb_sha256 *hash, const void *data, size_t size, uint8_t digest[EB_SHA256_BYTES]);

/* All at once. */
void eb_sha256(bool accelerated, const void *data, size_t size, uint8_t digest[EB_SHA256_BYTES]);

void eb_blake2b_512(const void *data, size_t size, uint8_t digest[64]);

bool eb_ed25519_verify(const uint8_t signature[64], const void *message, size_t size, const uint8_t key[32]);

#endif
