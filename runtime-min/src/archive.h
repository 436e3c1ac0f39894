/* The bundle archive (SPEC 1): its one spelling, read front to back from a feed. */
#ifndef EB_ARCHIVE_H
#define EB_ARCHIVE_H

#include "crypto.h"
#include "status.h"

#define EB_BLOCK ((size_t)512)
#define EB_CHUNK ((size_t)64 << 10) /* what is hashed at once, while it is in the processor's cache */
#define EB_HINT_DAMAGED "the file was damaged or changed on its way; get it again from its source"

/* The one header that SPEC 1 allows for a member. */
void eb_archive_header(const char *name, uint64_t size, uint8_t header[EB_BLOCK]);

/* How many zero bytes follow `size` bytes of data. */
size_t eb_archive_padding(uint64_t size);

/* One read of at most `size` bytes; *got is 0 at the end. */
eb_status eb_feed_some(const eb_feed *feed, void *data, size_t size, size_t *got, eb_error *error);

/* Exactly `size` bytes. */
eb_status eb_feed_all(const eb_feed *feed, void *data, size_t size, eb_error *error);

/* Passes over `size` bytes: without reading them where the feed can. */
eb_status eb_feed_skip(const eb_feed *feed, uint64_t size, eb_error *error);

/* Reads `size` bytes and hashes them on the way: into `content`, or, when that is NULL, through a buffer. */
eb_status eb_feed_hashed(const eb_feed *feed, uint64_t size, bool accelerated, uint8_t *content,
                         uint8_t digest[EB_SHA256_BYTES], eb_error *error);

/* A member of a size that only its header tells: its data, of at most `limit` bytes. */
eb_status eb_archive_short(const eb_feed *feed, const char *name, void *data, size_t limit, size_t *size,
                           eb_error *error);

/* Header, padding, and end of the archive; between the first two the caller reads the data. */
eb_status eb_archive_expect(const eb_feed *feed, const char *name, uint64_t size, eb_error *error);
eb_status eb_archive_pad(const eb_feed *feed, const char *name, uint64_t size, eb_error *error);
eb_status eb_archive_end(const eb_feed *feed, eb_error *error);

/* The refusal of a file whose SHA-256 is not the manifest's. */
eb_status eb_archive_other_file(const char *path, eb_error *error);

#endif
