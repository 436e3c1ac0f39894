/* A release index, for the target `test`. */
#include "index.h"

static const char *target_of(void *context, const char *name) {
  (void)context, (void)name;
  return "test";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct eb_index index;
  eb_error error;
  eb_index_parse((eb_bytes){data, size}, target_of, NULL, &index, &error);
  return 0;
}
