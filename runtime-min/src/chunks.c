#include "chunks.h"

#include <string.h>

#define DIGITS_MAX 15u /* a size of 60 bits */
#define EXTRA_MAX ((uint32_t)8 << 10)

void eb_chunks_open(struct eb_chunks *chunks) {
  *chunks = (struct eb_chunks){.state = EB_CHUNK_SIZE};
}

static int digit_of(uint8_t c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static enum eb_chunk_state behind_size(struct eb_chunks *chunks, uint8_t c) {
  int digit = digit_of(c);
  if (digit >= 0 && chunks->digits < DIGITS_MAX) {
    chunks->digits++;
    chunks->left = chunks->left << 4 | (uint64_t)digit;
    return EB_CHUNK_SIZE;
  }
  if (!chunks->digits || digit >= 0) return EB_CHUNK_BAD;
  return c == '\r' ? EB_CHUNK_SIZE_LF : c == ';' || c == ' ' || c == '\t' ? EB_CHUNK_EXTENSION : EB_CHUNK_BAD;
}

static enum eb_chunk_state behind_extra(struct eb_chunks *chunks, uint8_t c, enum eb_chunk_state same) {
  if (++chunks->extra > EXTRA_MAX || c == '\n') return EB_CHUNK_BAD;
  if (c != '\r') return same;
  return same == EB_CHUNK_EXTENSION ? EB_CHUNK_SIZE_LF : EB_CHUNK_TRAILER_LF;
}

/* Behind the line of a size there is a chunk, or the last one's trailer. */
static enum eb_chunk_state behind_line(struct eb_chunks *chunks) {
  chunks->digits = 0;
  return chunks->left ? EB_CHUNK_DATA : EB_CHUNK_TRAILER;
}

/* The state behind a byte that is none of the body. */
static enum eb_chunk_state next(struct eb_chunks *chunks, uint8_t c) {
  switch (chunks->state) {
    case EB_CHUNK_SIZE:
      return behind_size(chunks, c);
    case EB_CHUNK_EXTENSION:
      return behind_extra(chunks, c, EB_CHUNK_EXTENSION);
    case EB_CHUNK_SIZE_LF:
      return c == '\n' ? behind_line(chunks) : EB_CHUNK_BAD;
    case EB_CHUNK_DATA_CR:
      return c == '\r' ? EB_CHUNK_DATA_LF : EB_CHUNK_BAD;
    case EB_CHUNK_DATA_LF:
      return c == '\n' ? EB_CHUNK_SIZE : EB_CHUNK_BAD;
    case EB_CHUNK_TRAILER:
      if (c == '\r') return EB_CHUNK_END_LF;
      return behind_extra(chunks, c, EB_CHUNK_TRAILER_LINE);
    case EB_CHUNK_TRAILER_LINE:
      return behind_extra(chunks, c, EB_CHUNK_TRAILER_LINE);
    case EB_CHUNK_TRAILER_LF:
      return c == '\n' ? EB_CHUNK_TRAILER : EB_CHUNK_BAD;
    case EB_CHUNK_END_LF:
      return c == '\n' ? EB_CHUNK_END : EB_CHUNK_BAD;
    default:
      return EB_CHUNK_BAD;
  }
}

size_t eb_chunks_take(struct eb_chunks *chunks, uint8_t *data, size_t size) {
  size_t body = 0;
  for (size_t at = 0; at < size && chunks->state != EB_CHUNK_END && chunks->state != EB_CHUNK_BAD;) {
    if (chunks->state != EB_CHUNK_DATA) {
      chunks->state = next(chunks, data[at++]);
      continue;
    }
    size_t count = size - at < chunks->left ? size - at : (size_t)chunks->left;
    memmove(data + body, data + at, count);
    body += count;
    at += count;
    chunks->left -= count;
    if (!chunks->left) chunks->state = EB_CHUNK_DATA_CR;
  }
  return body;
}
