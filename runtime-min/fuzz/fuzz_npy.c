/* Any bytes as an .npy file, read to its end. */
#include "source.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static uint8_t frame[64], planes[64];
  struct eb_tensor tensor = {.name = "x", .dtype = EB_F32, .rank = 2, .dim = {2, 3}, .bytes = 24};
  struct eb_stream stream = eb_stream_of_bytes("fuzz", (eb_bytes){data, size});
  struct eb_source source;
  eb_error error;
  bool end = false;
  if (eb_source_open(&source, stream, EB_FORMAT_NPY, &tensor, planes, &error)) return 0;
  while (!end && eb_source_next(&source, frame, &end, &error) == EB_OK) continue;
  return 0;
}
