#include "archive.h"

#include <string.h>
#include <sys/types.h>

static const char damaged[] = EB_HINT_DAMAGED;

static void octal(uint8_t *field, unsigned digits, uint64_t value) {
  for (unsigned i = digits; i > 0; i--, value >>= 3) field[i - 1] = (uint8_t)('0' + (value & 7));
}

void eb_archive_header(const char *name, uint64_t size, uint8_t header[EB_BLOCK]) {
  memset(header, 0, EB_BLOCK);
  memcpy(header, name, strlen(name));
  memcpy(header + 100, strcmp(name, "edgebuild-run") == 0 ? "0000755" : "0000644", 7);
  octal(header + 108, 7, 0);
  octal(header + 116, 7, 0);
  octal(header + 124, 11, size);
  octal(header + 136, 11, 0);
  memset(header + 148, ' ', 8);
  header[156] = '0';
  memcpy(header + 257, "ustar", 5);
  memcpy(header + 263, "00", 2);
  uint64_t sum = 0;
  for (size_t i = 0; i < EB_BLOCK; i++) sum += header[i];
  octal(header + 148, 6, sum);
  header[154] = 0;
}

size_t eb_archive_padding(uint64_t size) {
  return (EB_BLOCK - size % EB_BLOCK) % EB_BLOCK;
}

static bool all_zero(const uint8_t *bytes, size_t size) {
  uint8_t any = 0;
  for (size_t i = 0; i < size; i++) any |= bytes[i];
  return any == 0;
}

static eb_status unreadable(ssize_t failure, eb_error *error) {
  return eb_fail(error, EB_IO, "get the file again from its source", "cannot read the bundle: %s",
                 strerror((int)-failure));
}

static eb_status cut_off(eb_error *error) {
  return eb_fail(error, EB_REFUSED, damaged, "the bundle is cut off");
}

eb_status eb_feed_some(const eb_feed *feed, void *data, size_t size, size_t *got, eb_error *error) {
  ssize_t count = feed->read(feed->context, data, size);
  *got = count < 0 ? 0 : (size_t)count;
  return count < 0 ? unreadable(count, error) : EB_OK;
}

eb_status eb_feed_all(const eb_feed *feed, void *data, size_t size, eb_error *error) {
  for (size_t done = 0; done < size;) {
    size_t got;
    eb_status status = eb_feed_some(feed, (uint8_t *)data + done, size - done, &got, error);
    if (status) return status;
    if (got == 0) return cut_off(error);
    done += got;
  }
  return EB_OK;
}

eb_status eb_feed_skip(const eb_feed *feed, uint64_t size, eb_error *error) {
  uint8_t buffer[EB_CHUNK];
  if (size && feed->skip) {
    int failure = feed->skip(feed->context, size);
    if (failure < 0) return unreadable(failure, error);
    if (failure == 0) return EB_OK;
  }
  while (size) {
    size_t part = size < EB_CHUNK ? (size_t)size : EB_CHUNK;
    eb_status status = eb_feed_all(feed, buffer, part, error);
    if (status) return status;
    size -= part;
  }
  return EB_OK;
}

eb_status eb_feed_hashed(const eb_feed *feed, uint64_t size, bool accelerated, uint8_t *content,
                         uint8_t digest[EB_SHA256_BYTES], eb_error *error) {
  uint8_t buffer[EB_CHUNK];
  struct eb_sha256 hash;
  eb_sha256_begin(&hash, accelerated);
  for (; size > EB_CHUNK; size -= EB_CHUNK) {
    eb_status status = eb_feed_all(feed, content ? content : buffer, EB_CHUNK, error);
    if (status) return status;
    eb_sha256_add(&hash, content ? content : buffer, EB_CHUNK);
    if (content) content += EB_CHUNK;
  }
  eb_status status = eb_feed_all(feed, content ? content : buffer, size, error);
  if (!status) eb_sha256_end(&hash, content ? content : buffer, size, digest);
  return status;
}

static eb_status check_header(const uint8_t header[EB_BLOCK], const char *name, uint64_t size, eb_error *error) {
  uint8_t expected[EB_BLOCK];
  eb_archive_header(name, size, expected);
  if (memcmp(header, expected, EB_BLOCK) == 0) return EB_OK;
  return eb_fail(error, EB_REFUSED, damaged, "the bundle's archive header of %s is not as it must be", name);
}

eb_status eb_archive_expect(const eb_feed *feed, const char *name, uint64_t size, eb_error *error) {
  uint8_t header[EB_BLOCK];
  eb_status status = eb_feed_all(feed, header, EB_BLOCK, error);
  return status ? status : check_header(header, name, size, error);
}

eb_status eb_archive_pad(const eb_feed *feed, const char *name, uint64_t size, eb_error *error) {
  uint8_t padding[EB_BLOCK];
  size_t count = eb_archive_padding(size);
  eb_status status = eb_feed_all(feed, padding, count, error);
  if (status || all_zero(padding, count)) return status;
  return eb_fail(error, EB_REFUSED, damaged, "the bundle's padding behind %s is not zero", name);
}

/* The size in a header: 11 octal digits. */
static bool stated_size(const uint8_t header[EB_BLOCK], uint64_t *size) {
  *size = 0;
  for (size_t i = 124; i < 135; i++) {
    if (header[i] < '0' || header[i] > '7') return false;
    *size = *size << 3 | (uint64_t)(header[i] - '0');
  }
  return true;
}

eb_status eb_archive_short(const eb_feed *feed, const char *name, void *data, size_t limit, size_t *size,
                           eb_error *error) {
  uint8_t header[EB_BLOCK];
  eb_status status = eb_feed_all(feed, header, EB_BLOCK, error);
  if (status) return status;
  uint64_t stated;
  if (!stated_size(header, &stated)) {
    return eb_fail(error, EB_REFUSED, "give a file that edgebuild compile wrote", "this is not a bundle");
  }
  if (stated > limit) return eb_fail(error, EB_REFUSED, damaged, "the bundle's %s is over %zu bytes", name, limit);
  status = check_header(header, name, stated, error);
  if (!status) status = eb_feed_all(feed, data, stated, error);
  if (!status) status = eb_archive_pad(feed, name, stated, error);
  *size = stated;
  return status;
}

eb_status eb_archive_end(const eb_feed *feed, eb_error *error) {
  uint8_t end[2 * EB_BLOCK + 1];
  size_t more = 0;
  eb_status status = eb_feed_all(feed, end, 2 * EB_BLOCK, error);
  if (!status) status = eb_feed_some(feed, end + 2 * EB_BLOCK, 1, &more, error);
  if (status || (all_zero(end, 2 * EB_BLOCK) && !more)) return status;
  return eb_fail(error, EB_REFUSED, damaged, "the bundle has bytes behind its end");
}

eb_status eb_archive_other_file(const char *path, eb_error *error) {
  return eb_fail(error, EB_REFUSED, damaged, "the bundle's file %s is not the one that was signed (SHA-256)", path);
}
