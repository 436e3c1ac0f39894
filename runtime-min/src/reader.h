/* A bounds-checked cursor over bytes, little endian. After the first read past the end every read gives zero and
 * `failed` stays set, so a caller checks once. */
#ifndef EB_READER_H
#define EB_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "edgebuild_run.h"

struct eb_reader {
  const uint8_t *at;
  size_t left;
  bool failed;
};

static inline struct eb_reader eb_reader_of(const void *data, size_t size) {
  return (struct eb_reader){.at = data, .left = size};
}

/* The next `size` bytes, or NULL. */
static inline const uint8_t *eb_read_bytes(struct eb_reader *reader, size_t size) {
  if (reader->failed || size > reader->left) {
    reader->failed = true;
    return NULL;
  }
  const uint8_t *bytes = reader->at;
  reader->at += size;
  reader->left -= size;
  return bytes;
}

static inline uint8_t eb_read_u8(struct eb_reader *reader) {
  const uint8_t *b = eb_read_bytes(reader, 1);
  return b ? b[0] : 0;
}

static inline uint32_t eb_read_u32(struct eb_reader *reader) {
  const uint8_t *b = eb_read_bytes(reader, 4);
  return b ? (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24 : 0;
}

static inline uint64_t eb_read_u64(struct eb_reader *reader) {
  uint64_t low = eb_read_u32(reader);
  return low | (uint64_t)eb_read_u32(reader) << 32;
}

/* Takes the bytes up to the next LF and the LF; without one, what is left when `last_may_be_open`. */
static inline bool eb_read_line(struct eb_reader *reader, bool last_may_be_open, eb_bytes *line) {
  const uint8_t *start = reader->at;
  const uint8_t *end = reader->left ? memchr(start, '\n', reader->left) : NULL;
  if (!end && (!last_may_be_open || !reader->left)) return false;
  size_t size = end ? (size_t)(end - start) : reader->left;
  *line = (eb_bytes){eb_read_bytes(reader, size), size};
  if (end) eb_read_bytes(reader, 1);
  return true;
}

static inline bool eb_starts_with(eb_bytes text, const char *prefix) {
  size_t length = strlen(prefix);
  return text.size >= length && memcmp(text.data, prefix, length) == 0;
}

#endif
