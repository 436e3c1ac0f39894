#include "trust.h"

#include <string.h>

#include "date.h"
#include "reader.h"

static const char new_keys[] = "write the trust file again: edgebuild keys show > TRUST";
static const char new_roles[] = "get the trust file again from whoever made it; edgebuild trust show names what is wrong";

static bool same_id(const struct eb_key *key, const uint8_t id[EB_KEY_ID_BYTES]) {
  return memcmp(key->id, id, EB_KEY_ID_BYTES) == 0;
}

static const struct eb_key *find(const struct eb_key *keys, uint32_t count, const uint8_t id[EB_KEY_ID_BYTES]) {
  for (uint32_t i = 0; i < count; i++) {
    if (same_id(&keys[i], id)) return &keys[i];
  }
  return NULL;
}

/* ---- Keys, one a line ---- */

static eb_status open_keys(eb_bytes file, struct eb_trust *trust, eb_error *error) {
  struct eb_reader reader = eb_reader_of(file.data, file.size);
  eb_bytes line;
  for (unsigned number = 1; eb_read_line(&reader, true, &line); number++) {
    if (line.size == 0 || eb_starts_with(line, "#") || eb_starts_with(line, "untrusted comment:")) continue;
    struct eb_key *key = &trust->release[trust->release_count];
    if (!eb_key_parse(line, key)) {
      return eb_fail(error, EB_REFUSED, new_keys, "trust file, line %u: this is no public key of minisign", number);
    }
    if (find(trust->release, trust->release_count, key->id)) {
      return eb_fail(error, EB_REFUSED, new_keys, "trust file, line %u: this key id occurs twice", number);
    }
    trust->release_count++;
  }
  return trust->release_count ? EB_OK : eb_fail(error, EB_REFUSED, new_keys, "the trust file has no key");
}

/* ---- Roles: the body ---- */

/* The line that is read next; `line.data` is NULL behind the last. */
struct body {
  struct eb_reader reader;
  eb_bytes line;
  unsigned number;
  eb_error *error;
};

static void next_line(struct body *body) {
  if (!eb_read_line(&body->reader, false, &body->line)) body->line = (eb_bytes){NULL, 0};
  body->number++;
}

static eb_status bad_line(struct body *body, const char *what) {
  return eb_fail(body->error, EB_REFUSED, new_roles, "trust file, line %u: %s", body->number, what);
}

/* Whether the line is `key` and a value. */
static bool line_is(const struct body *body, const char *key, eb_bytes *value) {
  size_t length = strlen(key);
  if (!body->line.data || body->line.size < length + 2 || !eb_starts_with(body->line, key)) return false;
  const char *text = body->line.data;
  *value = (eb_bytes){text + length + 1, body->line.size - length - 1};
  return text[length] == ' ';
}

static eb_status expect(struct body *body, const char *key, eb_bytes *value) {
  if (line_is(body, key, value)) return EB_OK;
  return eb_fail(body->error, EB_REFUSED, new_roles, "trust file, line %u: expected `%s` and a value", body->number, key);
}

/* Decimal, no leading zeros, below 2^31. */
static bool parse_number(eb_bytes text, uint32_t *number) {
  const char *digit = text.data;
  if (text.size == 0 || text.size > 10 || (digit[0] == '0' && text.size > 1)) return false;
  uint64_t value = 0;
  for (size_t i = 0; i < text.size; i++) {
    if (digit[i] < '0' || digit[i] > '9') return false;
    value = value * 10 + (uint64_t)(digit[i] - '0');
  }
  *number = (uint32_t)value;
  return value < (uint64_t)1 << 31;
}

/* Another version of the format is no malformed file: nothing behind this line is looked at. */
static eb_status read_format(struct body *body) {
  eb_bytes value;
  uint32_t format;
  next_line(body);
  eb_status status = expect(body, "edgebuild-trust", &value);
  if (status) return status;
  if (!parse_number(value, &format)) return bad_line(body, "malformed version of the format");
  if (format == 1) return EB_OK;
  return eb_fail(body->error, EB_UNSUPPORTED, "install a newer edgebuild-run",
                 "the trust file has version %u of its format; this runtime reads version 1", format);
}

static eb_status read_count(struct body *body, const char *key, uint32_t *number) {
  eb_bytes value;
  next_line(body);
  eb_status status = expect(body, key, &value);
  if (status) return status;
  if (parse_number(value, number) && *number) return EB_OK;
  return bad_line(body, "expected a number from 1 to 2147483647");
}

static eb_status read_date(struct body *body, const char *key, uint32_t *date) {
  eb_bytes value;
  next_line(body);
  eb_status status = expect(body, key, &value);
  if (status || eb_date_parse(value, date)) return status;
  return bad_line(body, "expected a day, YYYY-MM-DD, of the years 2000 to 9999");
}

/* An id names one key, and a key has one id, so that no key can be counted twice. */
static bool is_listed(const struct eb_key *keys, uint32_t count, const struct eb_key *key) {
  for (uint32_t i = 0; i < count; i++) {
    if (same_id(&keys[i], key->id) || memcmp(keys[i].key, key->key, sizeof key->key) == 0) return true;
  }
  return false;
}

static bool has_key(const struct eb_trust *trust, const struct eb_key *key) {
  return is_listed(trust->root, trust->root_count, key) || is_listed(trust->retired, trust->retired_count, key) ||
         is_listed(trust->release, trust->release_count, key);
}

/* The keys of a role: the lines from the current one on that start with it. */
static eb_status read_keys(struct body *body, const struct eb_trust *trust, const char *role, uint32_t max,
                           struct eb_key *keys, uint32_t *count) {
  eb_bytes value;
  for (; line_is(body, role, &value); next_line(body)) {
    struct eb_key key;
    if (*count == max) return bad_line(body, "too many keys of this role");
    if (!eb_key_parse(value, &key)) return bad_line(body, "this is no public key of minisign");
    if (has_key(trust, &key)) return bad_line(body, "this key or its id occurs twice");
    keys[(*count)++] = key;
  }
  return EB_OK;
}

static eb_status check_body(struct body *body, const struct eb_trust *trust) {
  if (body->line.data) return bad_line(body, "unexpected line");
  if (trust->expires <= trust->made) return bad_line(body, "the file expires before it was made");
  if (trust->root_count == 0 || trust->release_count == 0) return bad_line(body, "a root or a release key is missing");
  if (trust->root_threshold > trust->root_count) return bad_line(body, "root-threshold is above the number of roots");
  return EB_OK;
}

static eb_status read_body(struct eb_trust *trust, eb_error *error) {
  struct body body = {.reader = eb_reader_of(trust->body.data, trust->body.size), .error = error};
  eb_status status = read_format(&body);
  if (!status) status = read_count(&body, "version", &trust->version);
  if (!status) status = read_date(&body, "made", &trust->made);
  if (!status) status = read_date(&body, "expires", &trust->expires);
  if (!status) status = read_count(&body, "root-threshold", &trust->root_threshold);
  if (status) return status;
  next_line(&body);
  status = read_keys(&body, trust, "root", EB_ROOTS_MAX, trust->root, &trust->root_count);
  if (!status) status = read_keys(&body, trust, "retired", EB_ROOTS_MAX, trust->retired, &trust->retired_count);
  if (!status) status = read_keys(&body, trust, "release", EB_RELEASE_KEYS_MAX, trust->release, &trust->release_count);
  return status ? status : check_body(&body, trust);
}

/* ---- Roles: the signatures ---- */

/* The next four lines as a signature; *found is false at the end. */
static eb_status next_signature(struct eb_reader *reader, unsigned number, struct eb_signature *signature, bool *found,
                                eb_error *error) {
  const uint8_t *start = reader->at;
  eb_bytes line;
  *found = reader->left > 0;
  if (!*found) return EB_OK;
  for (int i = 0; i < 4; i++) {
    if (eb_read_line(reader, false, &line)) continue;
    return eb_fail(error, EB_REFUSED, new_roles, "trust file, signature %u: not four lines", number);
  }
  eb_error why;
  if (eb_signature_parse((eb_bytes){start, (size_t)(reader->at - start)}, signature, &why) == EB_OK) return EB_OK;
  return eb_fail(error, EB_REFUSED, new_roles, "trust file, signature %u: %.300s", number, why.message);
}

/* The place of a key among the roots, then the retired ones: the order of the signatures. */
static const struct eb_key *signing_key(const struct eb_trust *trust, const uint8_t id[EB_KEY_ID_BYTES],
                                        uint32_t *place) {
  const struct eb_key *key = find(trust->root, trust->root_count, id);
  if (key) {
    *place = (uint32_t)(key - trust->root);
    return key;
  }
  key = find(trust->retired, trust->retired_count, id);
  if (key) *place = trust->root_count + (uint32_t)(key - trust->retired);
  return key;
}

/* `least` is the lowest place that the next signature may have. */
static eb_status check_signature(const struct eb_trust *trust, const struct eb_signature *signature, unsigned number,
                                 uint32_t *least, eb_error *error) {
  uint32_t place;
  char id[17];
  eb_key_id_text(signature->key_id, id);
  const struct eb_key *key = signing_key(trust, signature->key_id, &place);
  if (!key) {
    return eb_fail(error, EB_REFUSED, new_roles, "trust file, signature %u: key %s is no root of it", number, id);
  }
  if (place < *least) {
    return eb_fail(error, EB_REFUSED, new_roles, "trust file, signature %u: key %s is out of order or signed twice",
                   number, id);
  }
  *least = place + 1;
  if (eb_signature_holds(signature, trust->body, key)) return EB_OK;
  return eb_fail(error, EB_REFUSED, new_roles, "trust file, signature %u: that of key %s does not hold", number, id);
}

/* SPEC 4: every signature is by a root or a retired one, and holds; at least K are by roots. */
static eb_status check_signatures(const struct eb_trust *trust, eb_error *error) {
  struct eb_reader reader = eb_reader_of(trust->signatures.data, trust->signatures.size);
  uint32_t least = 0, by_roots = 0;
  bool more = true;
  for (unsigned number = 1; more; number++) {
    struct eb_signature signature;
    eb_status status = next_signature(&reader, number, &signature, &more, error);
    if (!status && more) status = check_signature(trust, &signature, number, &least, error);
    if (status) return status;
    if (more && least <= trust->root_count) by_roots++;
  }
  if (by_roots >= trust->root_threshold) return EB_OK;
  return eb_fail(error, EB_REFUSED, "let more of its root keys sign it: edgebuild trust sign",
                 "the trust file is signed by %u of its roots; it takes %u", by_roots, trust->root_threshold);
}

static eb_status open_roles(eb_bytes file, struct eb_trust *trust, eb_error *error) {
  const char *text = file.data;
  struct body first = {.reader = eb_reader_of(file.data, file.size), .error = error};
  eb_status status = read_format(&first);
  if (status) return status;
  const char *end = memmem(text, file.size, "\n\n", 2);
  if (!end) return eb_fail(error, EB_REFUSED, new_roles, "the trust file has no empty line, behind which it is signed");
  size_t body = (size_t)(end - text) + 1;
  trust->body = (eb_bytes){text, body};
  trust->signatures = (eb_bytes){text + body + 1, file.size - body - 1};
  status = read_body(trust, error);
  return status ? status : check_signatures(trust, error);
}

eb_status eb_trust_open(eb_bytes file, struct eb_trust *trust, eb_error *error) {
  memset(trust, 0, sizeof *trust);
  if (file.size > EB_TRUST_BYTES_MAX) return eb_fail(error, EB_REFUSED, new_keys, "the trust file is over 64 KiB");
  return eb_starts_with(file, "edgebuild-trust ") ? open_roles(file, trust, error) : open_keys(file, trust, error);
}

/* ---- One after the other ---- */

/* How many roots of `old` signed `next`. Its signatures were parsed when it was opened. */
static uint32_t signed_by_roots(const struct eb_trust *old, const struct eb_trust *next) {
  struct eb_reader reader = eb_reader_of(next->signatures.data, next->signatures.size);
  uint32_t count = 0;
  struct eb_signature signature;
  bool more = true;
  while (next_signature(&reader, 0, &signature, &more, NULL) == EB_OK && more) {
    const struct eb_key *key = find(old->root, old->root_count, signature.key_id);
    if (key && eb_signature_holds(&signature, next->body, key)) count++;
  }
  return count;
}

eb_status eb_trust_follows(const struct eb_trust *old, const struct eb_trust *next, eb_error *error) {
  static const char newer[] = "get the newest trust file from whoever made it";
  if (!old->version || !next->version) {
    return eb_fail(error, EB_REFUSED, newer, "a trust file without roles neither follows nor is followed");
  }
  if (next->version < old->version) {
    return eb_fail(error, EB_REFUSED, newer, "the trust file has version %u; version %u was accepted before",
                   next->version, old->version);
  }
  if (next->version == old->version) {
    if (next->body.size == old->body.size && memcmp(next->body.data, old->body.data, old->body.size) == 0) return EB_OK;
    return eb_fail(error, EB_REFUSED, newer, "the trust file is not the one of its version, %u, that was accepted before",
                   old->version);
  }
  uint32_t count = signed_by_roots(old, next);
  if (count >= old->root_threshold) return EB_OK;
  return eb_fail(error, EB_REFUSED, "let the roots of the version before sign it: edgebuild trust sign",
                 "trust file version %u is signed by %u of the roots of version %u; it takes %u", next->version, count,
                 old->version, old->root_threshold);
}

eb_status eb_signature_verify(const struct eb_signature *signature, eb_bytes message, const struct eb_trust *trust,
                              eb_error *error) {
  char id[17];
  eb_key_id_text(signature->key_id, id);
  const struct eb_key *key = find(trust->release, trust->release_count, signature->key_id);
  if (!key && find(trust->root, trust->root_count, signature->key_id)) {
    return eb_fail(error, EB_REFUSED, "sign the bundle with a release key: edgebuild sign",
                   "the bundle is signed by %s, a root key; root keys sign trust files only", id);
  }
  if (!key) {
    return eb_fail(error, EB_REFUSED, "add the signer's public key to the trust file, if you trust it",
                   "the bundle is signed by the key %s, which the trust file does not list", id);
  }
  if (eb_signature_holds(signature, message, key)) return EB_OK;
  return eb_fail(error, EB_REFUSED, "the bundle was changed after it was signed; get it again from its source",
                 "the signature does not hold");
}
