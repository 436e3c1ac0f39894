/* A feed of a file descriptor. */
#ifndef EB_FEED_H
#define EB_FEED_H

#include "status.h"

/* Reads on from where `fd` stands; passes over bytes without reading them where it can seek. */
eb_feed eb_feed_of_fd(int fd);

/* A feed whose first bytes were looked at. */
struct eb_peeked {
  eb_feed feed;
  size_t at, size;
  uint8_t bytes[4];
};

/* Looks at the first bytes; the feed that it gives has all of them. `peeked` must outlive it. */
eb_status eb_feed_peek(struct eb_peeked *peeked, const eb_feed *feed, eb_feed *whole, eb_error *error);

#endif
