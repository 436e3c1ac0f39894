#include "feed.h"

#include <errno.h>
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
