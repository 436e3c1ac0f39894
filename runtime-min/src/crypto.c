#include "crypto.h"

#include <sodium/crypto_generichash_blake2b.h>
#include <sodium/crypto_hash_sha256.h>
#include <sodium/crypto_sign_ed25519.h>
#include <string.h>

#include "sha256_block.h"

static void store_be32(uint8_t *out, uint32_t word) {
  for (int i = 0; i < 4; i++) out[i] = (uint8_t)(word >> (24 - 8 * i));
}

static void sha256_accelerated(const uint8_t *data, size_t size, uint8_t digest[EB_SHA256_BYTES]) {
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  size_t whole = size / 64, rest = size % 64;
  eb_sha256_blocks(state, data, whole);
  uint8_t tail[128] = {0};
  size_t tail_blocks = rest < 56 ? 1 : 2;
  if (rest) memcpy(tail, data + whole * 64, rest);
  tail[rest] = 0x80;
  uint64_t bits = (uint64_t)size * 8;
  store_be32(tail + tail_blocks * 64 - 8, (uint32_t)(bits >> 32));
  store_be32(tail + tail_blocks * 64 - 4, (uint32_t)bits);
  eb_sha256_blocks(state, tail, tail_blocks);
  for (int i = 0; i < 8; i++) store_be32(digest + 4 * i, state[i]);
}

void eb_sha256(bool accelerated, const void *data, size_t size, uint8_t digest[EB_SHA256_BYTES]) {
  if (accelerated) {
    sha256_accelerated(data, size, digest);
  } else {
    crypto_hash_sha256(digest, data, size);
  }
}

void eb_blake2b_512(const void *data, size_t size, uint8_t digest[64]) {
  crypto_generichash_blake2b(digest, 64, data, size, NULL, 0);
}

bool eb_ed25519_verify(const uint8_t signature[64], const void *message, size_t size, const uint8_t key[32]) {
  return crypto_sign_ed25519_verify_detached(signature, message, size, key) == 0;
}
