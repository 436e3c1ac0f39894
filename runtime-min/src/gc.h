/* Removes from a store what no state names as current or previous (SPEC 11). */
#ifndef EB_GC_H
#define EB_GC_H

#include "store.h"

struct eb_gc_result {
  uint32_t releases; /* removed */
  uint32_t blobs;
  uint64_t bytes;      /* of blobs and of what has arrived in part */
  uint64_t kept_bytes; /* of blobs */
  uint32_t kept_blobs;
};

/* `store` is locked. Removes nothing when a state cannot be read. */
eb_status eb_gc(struct eb_store *store, struct eb_gc_result *result, eb_error *error);

#endif
