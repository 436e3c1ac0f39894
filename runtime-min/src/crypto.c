#include "crypto.h"

#include <sodium/crypto_generichash_blake2b.h>
#include <sodium/crypto_sign_ed25519.h>
#include <string.h>

#include "sha256_block.h"

#ifdef EB_SHA256_BLOCKS

static void store_be32(uint8_t *out, uint32_t word) {
  for (int i = 0; i < 4; i++) out[i] = (uint8_t)(word >> (24 - 8 * i));
}

static void add_blocks(struct eb_sha256 *hash, const void *data, size_t size) {
  eb_sha256_blocks(hash->state, data, size / 64);
  hash->bytes += size;
}

/* The rest of the data, a one bit, zeros, and the length in bits: one block or two (FIPS 180-4, 5.1.1). */
static void end_blocks(struct eb_sha256 *hash, const uint8_t *data, size_t size, uint8_t digest[EB_SHA256_BYTES]) {
  size_t rest = size % 64, tail_bytes = rest < 56 ? 64 : 128;
  add_blocks(hash, data, size - rest);
  uint64_t bits = (hash->bytes + rest) * 8;
  uint8_t tail[128] = {0};
  if (rest) memcpy(tail, data + size - rest, rest);
  tail[rest] = 0x80;
  store_be32(tail + tail_bytes - 8, (uint32_t)(bits >> 32));
  store_be32(tail + tail_bytes - 4, (uint32_t)bits);
  add_blocks(hash, tail, tail_bytes);
  for (int i = 0; i < 8; i++) store_be32(digest + 4 * i, hash->state[i]);
}

#endif

void eb_sha256_begin(struct eb_sha256 *hash, bool accelerated) {
  *hash = (struct eb_sha256){
      .accelerated = accelerated,
      .state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
  crypto_hash_sha256_init(&hash->portable);
}

void eb_sha256_add(struct eb_sha256 *hash, const void *data, size_t size) {
#ifdef EB_SHA256_BLOCKS
  if (hash->accelerated) {
    add_blocks(hash, data, size);
    return;
  }
#endif
  crypto_hash_sha256_update(&hash->portable, data, size);
}

void eb_sha256_end(struct eb_sha256 *hash, const void *data, size_t size, uint8_t digest[EB_SHA256_BYTES]) {
#ifdef EB_SHA256_BLOCKS
  if (hash->accelerated) {
    end_blocks(hash, data, size, digest);
    return;
  }
#endif
  crypto_hash_sha256_update(&hash->portable, data, size);
  crypto_hash_sha256_final(&hash->portable, digest);
}

void eb_sha256(bool accelerated, const void *data, size_t size, uint8_t digest[EB_SHA256_BYTES]) {
  struct eb_sha256 hash;
  eb_sha256_begin(&hash, accelerated);
  eb_sha256_end(&hash, data, size, digest);
}

void eb_blake2b_512(const void *data, size_t size, uint8_t digest[64]) {
  crypto_generichash_blake2b(digest, 64, data, size, NULL, 0);
}

bool eb_ed25519_verify(const uint8_t signature[64], const void *message, size_t size, const uint8_t key[32]) {
  return crypto_sign_ed25519_verify_detached(signature, message, size, key) == 0;
}
