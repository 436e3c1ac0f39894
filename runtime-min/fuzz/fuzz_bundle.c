/* Two bytes of length, a trust file of that length, then a bundle: start from signed ones. */
#include "bundle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) return 0;
  size_t trust_size = data[0] | (size_t)data[1] << 8;
  if (trust_size > size - 2) return 0;
  static struct eb_bundle bundle;
  struct eb_cpu cpu;
  eb_error error;
  eb_cpu_detect(&cpu);
  eb_bytes trust = {data + 2, trust_size}, archive = {data + 2 + trust_size, size - 2 - trust_size};
  eb_bundle_verify(&bundle, archive, trust, &cpu, &error);
  return 0;
}
