/* zstd frames (RFC 8878) with a window of at most 2 MiB, decoded in memory that the caller gives. */
#ifndef EB_UNZSTD_H
#define EB_UNZSTD_H

#include <stdbool.h>
#include <stdint.h>

#include "edgebuild_run.h"

#define EB_UNZSTD_WINDOW_LOG 21
#define EB_UNZSTD_MEMORY ((size_t)3 << 20)
#define EB_UNZSTD_PREFIX_MEMORY ((size_t)64 << 10)

struct eb_unzstd {
  _Alignas(64) uint8_t memory[EB_UNZSTD_MEMORY];
  _Alignas(64) uint8_t prefix_memory[EB_UNZSTD_PREFIX_MEMORY];
  void *context;
};

/* `prefix` is what the frame may refer to, and must outlive it; it may be empty. */
bool eb_unzstd_open(struct eb_unzstd *unzstd, eb_bytes prefix);

/* Takes from the front of `in` and writes up to *made bytes; *ended when the frame is complete. */
bool eb_unzstd_run(struct eb_unzstd *unzstd, eb_bytes *in, void *out, size_t *made, bool *ended);

#endif
