/* The processor's SHA-256 against libsodium's, for every length up to five blocks and some alignments. */
#include <stdio.h>
#include <string.h>

#include "cpu.h"
#include "crypto.h"

enum { LENGTHS = 5 * 64 + 2, ALIGNMENTS = 4 };

static bool same(const uint8_t *data, size_t size) {
  uint8_t accelerated[EB_SHA256_BYTES], portable[EB_SHA256_BYTES];
  eb_sha256(true, data, size, accelerated);
  eb_sha256(false, data, size, portable);
  return memcmp(accelerated, portable, sizeof portable) == 0;
}

/* In parts of every length that is allowed, the digest is that of the whole. */
static bool same_in_parts(bool accelerated, const uint8_t *data, size_t size) {
  uint8_t whole[EB_SHA256_BYTES], parts[EB_SHA256_BYTES];
  eb_sha256(accelerated, data, size, whole);
  for (size_t step = 64; step <= size; step += 64) {
    struct eb_sha256 hash;
    size_t done = 0;
    eb_sha256_begin(&hash, accelerated);
    for (; size - done > step; done += step) eb_sha256_add(&hash, data + done, step);
    eb_sha256_end(&hash, data + done, size - done, parts);
    if (memcmp(whole, parts, sizeof whole) != 0) return false;
  }
  return true;
}

/* FIPS 180-4's "abc". */
static bool known_answer(bool accelerated) {
  static const uint8_t expected[8] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea};
  uint8_t digest[EB_SHA256_BYTES];
  eb_sha256(accelerated, "abc", 3, digest);
  return memcmp(digest, expected, sizeof expected) == 0;
}

int main(void) {
  static uint8_t data[LENGTHS + ALIGNMENTS];
  struct eb_cpu cpu;
  eb_cpu_detect(&cpu);
  for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 167 + i / 251);
  if (!known_answer(false)) return puts("the portable SHA-256 is wrong"), 1;
  for (size_t size = 0; size < LENGTHS; size++) {
    if (!same_in_parts(false, data, size)) return printf("portable: parts differ at %zu bytes\n", size), 1;
  }
  if (!cpu.sha256) return puts("portable only: this CPU has no SHA-256 instructions"), 0;
  if (!known_answer(true)) return puts("the accelerated SHA-256 is wrong"), 1;
  for (size_t align = 0; align < ALIGNMENTS; align++) {
    for (size_t size = 0; size < LENGTHS; size++) {
      if (!same(data + align, size)) return printf("differs at %zu bytes\n", size), 1;
    }
  }
  for (size_t size = 0; size < LENGTHS; size++) {
    if (!same_in_parts(true, data, size)) return printf("accelerated: parts differ at %zu bytes\n", size), 1;
  }
  puts("accelerated and portable agree");
  return 0;
}
