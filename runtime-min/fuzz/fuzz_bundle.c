/* Two bytes of length, a trust file of that length, then a bundle: start from signed ones. */
#include <string.h>

#include "bundle.h"

static ssize_t read_bytes(void *context, void *data, size_t size) {
  eb_bytes *left = context;
  size_t count = size < left->size ? size : left->size;
  if (count) memcpy(data, left->data, count);
  *left = (eb_bytes){(const uint8_t *)left->data + count, left->size - count};
  return (ssize_t)count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) return 0;
  size_t trust_size = data[0] | (size_t)data[1] << 8;
  if (trust_size > size - 2) return 0;
  static struct eb_bundle bundle;
  struct eb_cpu cpu;
  eb_error error;
  eb_cpu_detect(&cpu);
  eb_bytes trust = {data + 2, trust_size}, archive = {data + 2 + trust_size, size - 2 - trust_size};
  eb_feed feed = {.read = read_bytes, .context = &archive};
  memset(&bundle, 0, sizeof bundle);
  eb_bundle_read(&bundle, &feed, NULL, trust, &cpu, EB_KEEP_GOLDEN, &error);
  eb_bundle_close(&bundle);
  return 0;
}
