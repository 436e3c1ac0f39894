/* The chunked transfer coding (RFC 9112, section 7.1): what is left of it is taken out of bytes as they arrive. */
#ifndef EB_CHUNKS_H
#define EB_CHUNKS_H

#include <stddef.h>
#include <stdint.h>

enum eb_chunk_state {
  EB_CHUNK_SIZE,      /* hexadecimal digits */
  EB_CHUNK_EXTENSION, /* up to the line's end: nobody reads it */
  EB_CHUNK_SIZE_LF,
  EB_CHUNK_DATA,
  EB_CHUNK_DATA_CR,
  EB_CHUNK_DATA_LF,
  EB_CHUNK_TRAILER,      /* the start of a line behind the last chunk */
  EB_CHUNK_TRAILER_LINE, /* inside one */
  EB_CHUNK_TRAILER_LF,
  EB_CHUNK_END_LF,
  EB_CHUNK_END, /* what follows is none of the body */
  EB_CHUNK_BAD,
};

struct eb_chunks {
  enum eb_chunk_state state;
  uint32_t digits; /* of the size */
  uint32_t extra;  /* bytes of extensions and trailers: few are borne */
  uint64_t left;   /* of the chunk */
};

/* Starts in front of the first chunk. */
void eb_chunks_open(struct eb_chunks *chunks);

/* Moves the body's bytes among `size` bytes to their front; how many. The state says whether the body has ended, or is
 * no chunked one. */
size_t eb_chunks_take(struct eb_chunks *chunks, uint8_t *data, size_t size);

#endif
