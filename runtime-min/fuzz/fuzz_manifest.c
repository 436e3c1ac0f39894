/* Any bytes as a manifest. */
#include <stdlib.h>
#include <string.h>

#include "manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct eb_manifest manifest;
  eb_error error;
  char *text = malloc(size + 1);
  memcpy(text, data, size);
  struct eb_cpu cpu;
  eb_cpu_detect(&cpu);
  if (eb_manifest_parse(text, size, &manifest, &error) == EB_OK) eb_manifest_fits(&manifest, &cpu, &error);
  free(text);
  return 0;
}
