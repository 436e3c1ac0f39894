/* Files of a release's folder: in a directory, or behind http:// or https:// (RFC 9110).
 *
 * Everything that is fetched is signed, so plain HTTP is enough to be safe from changes; it hides nothing. https:// is
 * left to the device's own curl, with its certificates and its security updates: a TLS library of our own would be
 * larger than the rest of this program, and outlive its security fixes. */
#ifndef EB_REMOTE_H
#define EB_REMOTE_H

#include "chunks.h"
#include "status.h"

#define EB_REMOTE_URL_MAX 1024u
#define EB_REMOTE_SIZE_ANY UINT64_MAX

/* How a remote copes with a bad line; 0: the defaults. */
struct eb_remote_patience {
  uint32_t attempts;   /* in a row without a byte, 8 */
  uint32_t first_ms;   /* the first pause, 500; each is twice as long as the one before it, up to */
  uint32_t longest_ms; /* 60,000; half of every pause is random */
  uint32_t silence_ms; /* nothing comes for so long, or next to nothing: 30,000 */
};

struct eb_remote {
  const char *base; /* a folder, or a URL */
  struct eb_remote_patience patience;
  uint64_t random;
  char name[256]; /* of the file */
  uint64_t size;  /* what it should have; EB_REMOTE_SIZE_ANY: unknown */
  uint64_t at;    /* the next byte */
  int fd;         /* -1: not connected */
  int child;      /* curl's process; 0: none */
  int said;       /* what it says at its end: the status code; -1: none */
  uint64_t left;  /* of the body; EB_REMOTE_SIZE_ANY: up to the connection's end */
  bool chunked;   /* the body is, and ends when `chunks` says so */
  struct eb_chunks chunks;
  uint64_t drop; /* bytes in front of `at` that come all the same: the server knows no ranges */
  bool whole;    /* it told so */
  size_t begin, end;
  uint32_t failures;
  bool lasting;        /* the last one would come again */
  uint64_t arrived;    /* bytes since the last one */
  uint64_t watched_ms; /* since when it is watched how fast the line is, */
  uint64_t watched;    /* and what came since then */
  uint64_t fetched;    /* bytes of bodies, in all */
  uint32_t connections;
  eb_error error; /* of a read that failed; the feed gives -EIO then */
  uint8_t buffer[16 << 10];
};

/* `base` must stay valid. */
void eb_remote_open(struct eb_remote *remote, const char *base, struct eb_remote_patience patience);
void eb_remote_close(struct eb_remote *remote);

/* The next reads are of this file, from its start. */
void eb_remote_file(struct eb_remote *remote, const char *name, uint64_t size);

/* Reads the file; connects where it has to, again and again after a failure, and goes on where it was. */
eb_feed eb_remote_feed(struct eb_remote *remote);

/* A whole file of at most `limit` bytes; a file that is not there is *found false. */
eb_status eb_remote_read(struct eb_remote *remote, const char *name, void *buffer, size_t limit, size_t *size,
                         bool *found, eb_error *error);

#endif
