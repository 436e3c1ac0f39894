/* The release index (SPEC 13, release.json), read for one target. */
#ifndef EB_INDEX_H
#define EB_INDEX_H

#include "crypto.h"
#include "status.h"

#define EB_INDEX_BYTES_MAX ((size_t)256 << 10)
#define EB_INDEX_TARGETS_MAX 256u
#define EB_INDEX_DELTAS_MAX 64u
#define EB_INDEX_FILE_TEXT 201u

struct eb_index_file {
  char name[EB_INDEX_FILE_TEXT]; /* in the index's folder; empty: there is none */
  uint64_t size;
  uint8_t sha256[EB_SHA256_BYTES];
};

struct eb_index_delta {
  uint8_t from[EB_SHA256_BYTES]; /* the ID of its base */
  struct eb_index_file file;
};

struct eb_index {
  char name[65];
  char version[33];
  uint32_t release;
  uint32_t made, expires; /* dates as date.h counts; 0: none */
  struct eb_index_file trust;
  uint32_t trust_version;
  bool has_bundle; /* for the target that was asked for */
  uint8_t id[EB_SHA256_BYTES];
  struct eb_index_file bundle;
  uint32_t delta_count;
  struct eb_index_delta delta[EB_INDEX_DELTAS_MAX];
};

/* `text` was verified. `target_of` is told the name that the index is of, once, and says whose bundle is wanted; NULL:
 * nobody's. */
eb_status eb_index_parse(eb_bytes text, const char *(*target_of)(void *context, const char *name), void *context,
                         struct eb_index *index, eb_error *error);

#endif
