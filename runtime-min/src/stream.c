#include "stream.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

struct eb_stream eb_stream_of_fd(const char *name, int fd, uint8_t *buffer) {
  return (struct eb_stream){.name = name, .fd = fd, .buffer = buffer, .data = buffer};
}

struct eb_stream eb_stream_of_bytes(const char *name, eb_bytes bytes) {
  return (struct eb_stream){.name = name, .fd = -1, .data = bytes.data, .end = bytes.size};
}

/* One read(2) of at most `size` bytes; 0 at the end. */
static eb_status read_some(struct eb_stream *stream, void *data, size_t size, size_t *got, eb_error *error) {
  *got = 0;
  while (stream->fd >= 0) {
    ssize_t count = read(stream->fd, data, size);
    if (count >= 0) {
      *got = (size_t)count;
      return EB_OK;
    }
    if (errno == EINTR) continue;
    return eb_fail(error, EB_IO, EB_HINT_PATH, "cannot read %s: %s", stream->name, strerror(errno));
  }
  return EB_OK;
}

static eb_status fill(struct eb_stream *stream, size_t wanted, eb_error *error) {
  if (stream->fd < 0 || stream->end - stream->begin >= wanted) return EB_OK;
  memmove(stream->buffer, stream->buffer + stream->begin, stream->end - stream->begin);
  stream->end -= stream->begin;
  stream->begin = 0;
  while (stream->end < wanted) {
    size_t got;
    eb_status status = read_some(stream, stream->buffer + stream->end, EB_STREAM_BUFFER - stream->end, &got, error);
    if (status || got == 0) return status;
    stream->end += got;
  }
  return EB_OK;
}

eb_status eb_stream_peek(struct eb_stream *stream, size_t size, eb_bytes *bytes, eb_error *error) {
  eb_status status = fill(stream, size < EB_STREAM_BUFFER ? size : EB_STREAM_BUFFER, error);
  *bytes = (eb_bytes){stream->data + stream->begin, stream->end - stream->begin};
  return status;
}

eb_status eb_stream_read(struct eb_stream *stream, void *data, size_t size, size_t *got, eb_error *error) {
  size_t held = stream->end - stream->begin;
  *got = held < size ? held : size;
  if (*got) memcpy(data, stream->data + stream->begin, *got);
  stream->begin += *got;
  while (*got < size) {
    size_t more;
    eb_status status = read_some(stream, (uint8_t *)data + *got, size - *got, &more, error);
    if (status || more == 0) return status;
    *got += more;
  }
  return EB_OK;
}

eb_status eb_stream_line(struct eb_stream *stream, char *text, size_t capacity, bool *found, eb_error *error) {
  *found = false;
  for (size_t length = 0; length < capacity; length++) {
    size_t got;
    eb_status status = eb_stream_read(stream, &text[length], 1, &got, error);
    if (status || got == 0) return status;
    if (text[length] != '\n') continue;
    text[length] = 0;
    *found = true;
    return EB_OK;
  }
  return EB_OK;
}
