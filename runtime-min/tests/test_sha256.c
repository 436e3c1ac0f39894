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
  if (!cpu.sha256) return puts("portable only: this CPU has no SHA-256 instructions"), 0;
  if (!known_answer(true)) return puts("the accelerated SHA-256 is wrong"), 1;
  for (size_t align = 0; align < ALIGNMENTS; align++) {
    for (size_t size = 0; size < LENGTHS; size++) {
      if (!same(data + align, size)) return printf("differs at %zu bytes\n", size), 1;
    }
  }
  puts("accelerated and portable agree");
  return 0;
}
