/* A chunked body, cut where its bytes say: what comes of it must not depend on how it arrives. */
#include <stdlib.h>
#include <string.h>

#include "chunks.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static uint8_t whole[64 << 10], pieces[64 << 10];
  struct eb_chunks first, second;
  if (size < 1 || size > sizeof whole) return 0;
  size_t step = data[0] % 16u + 1u, at = 0, body = 0;
  data++, size--;
  memcpy(whole, data, size);
  eb_chunks_open(&first);
  size_t taken = eb_chunks_take(&first, whole, size);
  eb_chunks_open(&second);
  for (; at < size; at += step) {
    size_t count = size - at < step ? size - at : step;
    memcpy(pieces + body, data + at, count);
    body += eb_chunks_take(&second, pieces + body, count);
  }
  if (taken > size || body != taken || memcmp(whole, pieces, body) != 0 || first.state != second.state) abort();
  return 0;
}
