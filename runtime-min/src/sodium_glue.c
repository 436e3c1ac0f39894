/* The four functions of libsodium's utils.c, core.c and sign.c that verification reaches. The originals pull in guarded
 * heaps and a random generator; verification handles no secrets, so these need no constant time and no wiping that
 * survives optimization. */
#include <sodium/crypto_hash_sha512.h>
#include <stdlib.h>
#include <string.h>

void sodium_memzero(void *pnt, size_t len);
int sodium_memcmp(const void *b1, const void *b2, size_t len);
int sodium_is_zero(const unsigned char *n, size_t nlen);
void sodium_misuse(void);
void _crypto_sign_ed25519_ref10_hinit(crypto_hash_sha512_state *hs, int prehashed);

void sodium_memzero(void *pnt, size_t len) {
  memset(pnt, 0, len);
}

int sodium_memcmp(const void *b1, const void *b2, size_t len) {
  return memcmp(b1, b2, len) == 0 ? 0 : -1;
}

int sodium_is_zero(const unsigned char *n, size_t nlen) {
  unsigned char any = 0;
  for (size_t i = 0; i < nlen; i++) any |= n[i];
  return any == 0;
}

/* Reached only by calls with impossible lengths, which crypto.c does not make. */
void sodium_misuse(void) {
  abort();
}

/* minisign signs the BLAKE2b hash as an ordinary Ed25519 message, so `prehashed` (Ed25519ph) is always 0. */
void _crypto_sign_ed25519_ref10_hinit(crypto_hash_sha512_state *hs, int prehashed) {
  if (prehashed) sodium_misuse();
  crypto_hash_sha512_init(hs);
}
