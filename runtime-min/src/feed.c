#include "feed.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static int fd_of(void *context) {
  return (int)(intptr_t)context;
}

static ssize_t read_fd(void *context, void *data, size_t size) {
  for (;;) {
    ssize_t got = read(fd_of(context), data, size);
    if (got >= 0) return got;
    if (errno != EINTR) return -errno;
  }
}

static int skip_fd(void *context, uint64_t size) {
  if (lseek(fd_of(context), (off_t)size, SEEK_CUR) >= 0) return 0;
  return errno == ESPIPE ? 1 : -errno;
}

eb_feed eb_feed_of_fd(int fd) {
  return (eb_feed){.read = read_fd, .skip = skip_fd, .context = (void *)(intptr_t)fd};
}

static ssize_t read_peeked(void *context, void *data, size_t size) {
  struct eb_peeked *peeked = context;
  size_t left = peeked->size - peeked->at;
  if (!left) return peeked->feed.read(peeked->feed.context, data, size);
  if (size > left) size = left;
  memcpy(data, peeked->bytes + peeked->at, size);
  peeked->at += size;
  return (ssize_t)size;
}

static int skip_peeked(void *context, uint64_t size) {
  struct eb_peeked *peeked = context;
  if (peeked->at < peeked->size || !peeked->feed.skip) return 1;
  return peeked->feed.skip(peeked->feed.context, size);
}

eb_status eb_feed_peek(struct eb_peeked *peeked, const eb_feed *feed, eb_feed *whole, eb_error *error) {
  *peeked = (struct eb_peeked){.feed = *feed};
  *whole = (eb_feed){.read = read_peeked, .skip = skip_peeked, .context = peeked};
  while (peeked->size < sizeof peeked->bytes) {
    ssize_t got = feed->read(feed->context, peeked->bytes + peeked->size, sizeof peeked->bytes - peeked->size);
    if (got < 0) {
      return eb_fail(error, EB_IO, "get the file again from its source", "cannot read the bundle: %s",
                     strerror((int)-got));
    }
    if (got == 0) break;
    peeked->size += (size_t)got;
  }
  return EB_OK;
}
