/* A release index, for the target `test`. */
#include "index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct eb_index index;
  eb_error error;
  eb_index_parse((eb_bytes){data, size}, "test", &index, &error);
  return 0;
}
