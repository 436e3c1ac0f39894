/* Buffered reading from a file descriptor (regular files, pipes, standard input), or from bytes in memory. */
#ifndef EB_STREAM_H
#define EB_STREAM_H

#include "status.h"

#define EB_STREAM_BUFFER ((size_t)64 << 10)

struct eb_stream {
  const char *name; /* for messages */
  int fd;           /* -1: `data` is all there is */
  uint8_t *buffer;  /* EB_STREAM_BUFFER bytes, the caller's; NULL when fd is -1 */
  const uint8_t *data;
  size_t begin;
  size_t end;
};

struct eb_stream eb_stream_of_fd(const char *name, int fd, uint8_t *buffer);
struct eb_stream eb_stream_of_bytes(const char *name, eb_bytes bytes);

/* Reads until `size` bytes wait in the buffer or the stream ends, and shows them without taking them. */
eb_status eb_stream_peek(struct eb_stream *stream, size_t size, eb_bytes *bytes, eb_error *error);

/* Takes up to `size` bytes; *got is less only at the end of the stream. */
eb_status eb_stream_read(struct eb_stream *stream, void *data, size_t size, size_t *got, eb_error *error);

/* Takes a line without its LF into text[capacity] with NUL. *found is false when the stream ends or the line is too
 * long; then nothing can be said about `text`. */
eb_status eb_stream_line(struct eb_stream *stream, char *text, size_t capacity, bool *found, eb_error *error);

#endif
