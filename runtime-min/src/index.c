#include "index.h"

#include <string.h>

#include "date.h"

#define LOWER "abcdefghijklmnopqrstuvwxyz"
#define UPPER "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define DIGITS "0123456789"
#define NUMBER_MAX 0x7fffffffu
#define FILE_MAX ((uint64_t)64 << 30)

#define NAMES_MAX 1600u /* more files than this take more than EB_INDEX_BYTES_MAX */

/* What may occur once only, as it stands in the text. */
struct names {
  uint32_t count;
  struct {
    const char *text;
    size_t length;
  } name[NAMES_MAX];
};

/* The index has one order of keys, so that reading it is expecting one thing after the other; a reader that meets
 * another one fails, and stays so. */
struct scan {
  const char *at, *end;
  bool failed;
  struct names files, targets;
};

static void skip_space(struct scan *scan) {
  while (scan->at < scan->end && strchr(" \t\r\n", *scan->at) && *scan->at) scan->at++;
}

static bool next_is(struct scan *scan, char c) {
  skip_space(scan);
  return !scan->failed && scan->at < scan->end && *scan->at == c;
}

static void expect(struct scan *scan, char c) {
  if (next_is(scan, c)) {
    scan->at++;
  } else {
    scan->failed = true;
  }
}

/* A string of printable ASCII without escapes, at most `capacity` - 1 long. */
static void read_string(struct scan *scan, char *text, size_t capacity) {
  size_t length = 0;
  expect(scan, '"');
  while (!scan->failed && scan->at < scan->end && *scan->at != '"') {
    char c = *scan->at++;
    if (c < 0x20 || c > 0x7e || c == '\\' || length + 1 == capacity) {
      scan->failed = true;
    } else {
      text[length++] = c;
    }
  }
  text[length] = 0;
  if (!scan->failed) expect(scan, '"');
}

static void expect_key(struct scan *scan, const char *key) {
  char text[32];
  read_string(scan, text, sizeof text);
  if (strcmp(text, key) != 0) scan->failed = true;
  expect(scan, ':');
}

static bool take_null(struct scan *scan) {
  skip_space(scan);
  if (scan->failed || scan->end - scan->at < 4 || memcmp(scan->at, "null", 4) != 0) return false;
  scan->at += 4;
  return true;
}

static uint64_t read_number(struct scan *scan, uint64_t least, uint64_t most) {
  uint64_t value = 0;
  skip_space(scan);
  const char *start = scan->at;
  while (scan->at < scan->end && *scan->at >= '0' && *scan->at <= '9' && value <= most) {
    value = value * 10 + (uint64_t)(*scan->at++ - '0');
  }
  if (scan->at == start || (*start == '0' && scan->at - start > 1) || value < least || value > most)
    scan->failed = true;
  return value;
}

static uint32_t read_date(struct scan *scan) {
  char text[11];
  uint32_t date = 0;
  if (take_null(scan)) return 0;
  read_string(scan, text, sizeof text);
  if (!eb_date_parse((eb_bytes){text, strlen(text)}, &date)) scan->failed = true;
  return date;
}

static void read_word(struct scan *scan, char *text, size_t capacity, const char *first, const char *rest) {
  read_string(scan, text, capacity);
  if (!text[0] || !strchr(first, text[0]) || strspn(text, rest) != strlen(text)) scan->failed = true;
}

/* The string that was read last, which must be none of those before. */
static void note_once(struct scan *scan, struct names *names, size_t length) {
  const char *text = scan->at - 1 - length;
  if (names->count == NAMES_MAX) scan->failed = true;
  if (scan->failed) return;
  for (uint32_t i = 0; i < names->count; i++) {
    if (names->name[i].length == length && memcmp(names->name[i].text, text, length) == 0) scan->failed = true;
  }
  names->name[names->count].text = text;
  names->name[names->count++].length = length;
}

static unsigned hex_digit(char c) {
  return c >= '0' && c <= '9' ? (unsigned)(c - '0') : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10u : 16u;
}

static void read_digest(struct scan *scan, uint8_t digest[EB_SHA256_BYTES]) {
  char text[2 * EB_SHA256_BYTES + 1];
  read_string(scan, text, sizeof text);
  if (strlen(text) != sizeof text - 1) scan->failed = true;
  for (size_t i = 0; i < EB_SHA256_BYTES && !scan->failed; i++) {
    unsigned high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
    if ((high | low) & 16u) scan->failed = true;
    digest[i] = (uint8_t)(high << 4 | (low & 15u));
  }
}

static void read_file(struct scan *scan, struct eb_index_file *file) {
  expect_key(scan, "file");
  read_word(scan, file->name, sizeof file->name, LOWER UPPER DIGITS, LOWER UPPER DIGITS "._+~-");
  note_once(scan, &scan->files, strlen(file->name));
  expect(scan, ',');
  expect_key(scan, "size");
  file->size = read_number(scan, 1, FILE_MAX);
  expect(scan, ',');
  expect_key(scan, "sha256");
  read_digest(scan, file->sha256);
}

static void read_trust(struct scan *scan, struct eb_index *index) {
  if (take_null(scan)) return;
  expect(scan, '{');
  read_file(scan, &index->trust);
  if (strcmp(index->trust.name, "trust") != 0) scan->failed = true;
  expect(scan, ',');
  expect_key(scan, "version");
  index->trust_version = (uint32_t)read_number(scan, 1, NUMBER_MAX);
  expect(scan, '}');
}

/* Whether another element of a list comes; takes what separates them, or the list's end. */
static bool another(struct scan *scan, uint32_t count) {
  if (next_is(scan, ']')) {
    scan->at++;
    return false;
  }
  if (count) expect(scan, ',');
  return !scan->failed;
}

/* One a base, the smallest first, each smaller than the bundle. */
static bool is_in_place(const struct eb_index *index, const struct eb_index_delta *delta) {
  if (delta->file.size >= index->bundle.size) return false;
  if (delta != index->delta && delta[-1].file.size > delta->file.size) return false;
  for (const struct eb_index_delta *other = index->delta; other != delta; other++) {
    if (memcmp(other->from, delta->from, sizeof other->from) == 0) return false;
  }
  return true;
}

static void read_deltas(struct scan *scan, struct eb_index *index) {
  index->delta_count = 0;
  expect(scan, '[');
  while (another(scan, index->delta_count)) {
    if (index->delta_count == EB_INDEX_DELTAS_MAX) {
      scan->failed = true;
      return;
    }
    struct eb_index_delta *delta = &index->delta[index->delta_count++];
    expect(scan, '{');
    expect_key(scan, "from");
    read_digest(scan, delta->from);
    expect(scan, ',');
    read_file(scan, &delta->file);
    expect(scan, '}');
    if (!is_in_place(index, delta)) scan->failed = true;
  }
}

/* The bundle of one target; only the one that was asked for is kept. */
static void read_bundle(struct scan *scan, const char *target, struct eb_index *index) {
  struct eb_index found = {0}; /* its bundle and deltas */
  char text[65];
  expect(scan, '{');
  expect_key(scan, "target");
  read_word(scan, text, sizeof text, LOWER DIGITS, LOWER DIGITS "_-");
  note_once(scan, &scan->targets, strlen(text));
  expect(scan, ',');
  expect_key(scan, "id");
  read_digest(scan, found.id);
  expect(scan, ',');
  read_file(scan, &found.bundle);
  expect(scan, ',');
  expect_key(scan, "deltas");
  read_deltas(scan, &found);
  expect(scan, '}');
  if (!target || strcmp(text, target) != 0) return;
  index->has_bundle = true;
  memcpy(index->id, found.id, sizeof index->id);
  index->bundle = found.bundle;
  index->delta_count = found.delta_count;
  memcpy(index->delta, found.delta, sizeof index->delta);
}

static void read_index(struct scan *scan, const char *(*target_of)(void *, const char *), void *context,
                       struct eb_index *index) {
  char format[24];
  expect(scan, '{');
  expect_key(scan, "format");
  read_string(scan, format, sizeof format);
  if (strcmp(format, "edgebuild-release 1") != 0) scan->failed = true;
  expect(scan, ',');
  expect_key(scan, "name");
  read_word(scan, index->name, sizeof index->name, LOWER DIGITS, LOWER DIGITS "_-");
  expect(scan, ',');
  expect_key(scan, "version");
  read_word(scan, index->version, sizeof index->version, LOWER UPPER DIGITS, LOWER UPPER DIGITS ".+~-");
  expect(scan, ',');
  expect_key(scan, "release");
  index->release = (uint32_t)read_number(scan, 1, NUMBER_MAX);
  expect(scan, ',');
  expect_key(scan, "made");
  index->made = read_date(scan);
  expect(scan, ',');
  expect_key(scan, "expires");
  index->expires = read_date(scan);
  expect(scan, ',');
  expect_key(scan, "trust");
  read_trust(scan, index);
  expect(scan, ',');
  expect_key(scan, "bundles");
  expect(scan, '[');
  const char *target = scan->failed ? NULL : target_of(context, index->name);
  uint32_t count = 0;
  for (; count < EB_INDEX_TARGETS_MAX && another(scan, count); count++) read_bundle(scan, target, index);
  if (count == 0) scan->failed = true;
  if (count == EB_INDEX_TARGETS_MAX) expect(scan, ']');
  expect(scan, '}');
  skip_space(scan);
  if (scan->at != scan->end) scan->failed = true;
}

eb_status eb_index_parse(eb_bytes text, const char *(*target_of)(void *context, const char *name), void *context,
                         struct eb_index *index, eb_error *error) {
  struct scan scan = {.at = text.data, .end = (const char *)text.data + text.size};
  memset(index, 0, sizeof *index);
  read_index(&scan, target_of, context, index);
  if (!scan.failed && text.size <= EB_INDEX_BYTES_MAX) return EB_OK;
  return eb_fail(error, EB_REFUSED, "edgebuild release writes it; a newer edgebuild-run may be needed",
                 "release.json is not a release index of version 1: byte %zu",
                 (size_t)(scan.at - (const char *)text.data));
}
