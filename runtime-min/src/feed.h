/* A feed of a file descriptor. */
#ifndef EB_FEED_H
#define EB_FEED_H

#include "status.h"

/* Reads on from where `fd` stands; passes over bytes without reading them where it can seek. */
eb_feed eb_feed_of_fd(int fd);

#endif
