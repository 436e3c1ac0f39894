#include "minisign.h"

#include <stdio.h>
#include <string.h>

#include "crypto.h"
#include "reader.h"

#define KEYS_MAX (EB_TRUST_BYTES_MAX / 57) /* a key is 56 characters and a line feed */

static const char new_trust[] = "write the trust file again: edgebuild keys show > TRUST";

struct public_key {
  uint8_t id[EB_KEY_ID_BYTES];
  uint8_t key[32];
};

/* Value of a base64 digit, or 64. */
static uint32_t base64_digit(uint8_t c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26u;
  if (c >= '0' && c <= '9') return c - '0' + 52u;
  return c == '+' ? 62 : c == '/' ? 63 : 64;
}

/* Canonical base64 of exactly `size` bytes: padded, unused bits zero. */
static bool base64_decode(eb_bytes text, uint8_t *out, size_t size) {
  const uint8_t *in = text.data;
  size_t digits = (size * 8 + 5) / 6;
  if (text.size != (size + 2) / 3 * 4) return false;
  for (size_t i = digits; i < text.size; i++) {
    if (in[i] != '=') return false;
  }
  uint32_t bits = 0;
  unsigned held = 0;
  for (size_t i = 0; i < digits; i++) {
    uint32_t digit = base64_digit(in[i]);
    if (digit == 64) return false;
    bits = bits << 6 | digit;
    held += 6;
    if (held >= 8) {
      held -= 8;
      *out++ = (uint8_t)(bits >> held);
    }
  }
  return (bits & ((1u << held) - 1)) == 0;
}

/* Takes the bytes up to the next LF and the LF; without one, what is left when `last_may_be_open`. */
static bool take_line(struct eb_reader *reader, bool last_may_be_open, eb_bytes *line) {
  const uint8_t *start = reader->at;
  const uint8_t *end = reader->left ? memchr(start, '\n', reader->left) : NULL;
  if (!end && (!last_may_be_open || !reader->left)) return false;
  size_t size = end ? (size_t)(end - start) : reader->left;
  *line = (eb_bytes){eb_read_bytes(reader, size), size};
  if (end) eb_read_bytes(reader, 1);
  return true;
}

static bool starts_with(eb_bytes line, const char *prefix) {
  size_t length = strlen(prefix);
  return line.size >= length && memcmp(line.data, prefix, length) == 0;
}

static bool equals(eb_bytes line, const char *text) {
  return line.size == strlen(text) && starts_with(line, text);
}

/* SPEC 3: not signed, so exactly one of two. */
static bool is_untrusted_comment(eb_bytes line) {
  return equals(line, "untrusted comment: signature from edgebuild") ||
         equals(line, "untrusted comment: signature from minisign secret key");
}

static bool is_text(eb_bytes bytes) {
  const uint8_t *byte = bytes.data;
  for (size_t i = 0; i < bytes.size; i++) {
    if (byte[i] != '\t' && (byte[i] < 0x20 || byte[i] > 0x7e)) return false;
  }
  return true;
}

/* Sets `legacy` when the form is right but for the algorithm, minisign's older one. */
static bool parse_signature(eb_bytes file, struct eb_signature *signature, bool *legacy) {
  static const char trusted[] = "trusted comment: ";
  struct eb_reader reader = eb_reader_of(file.data, file.size);
  eb_bytes line;
  uint8_t block[74];
  if (!take_line(&reader, false, &line) || !is_untrusted_comment(line)) return false;
  if (!take_line(&reader, false, &line) || !base64_decode(line, block, sizeof block)) return false;
  *legacy = memcmp(block, "Ed", 2) == 0;
  if (memcmp(block, "ED", 2) != 0) return false;
  memcpy(signature->key_id, block + 2, sizeof signature->key_id);
  memcpy(signature->signature, block + 10, sizeof signature->signature);
  if (!take_line(&reader, false, &line) || !starts_with(line, trusted)) return false;
  signature->comment.data = (const uint8_t *)line.data + strlen(trusted);
  signature->comment.size = line.size - strlen(trusted);
  if (!is_text(signature->comment)) return false;
  return take_line(&reader, false, &line) && base64_decode(line, signature->global_signature, 64) && reader.left == 0;
}

eb_status eb_signature_parse(eb_bytes file, struct eb_signature *signature, eb_error *error) {
  bool legacy = false;
  if (file.size <= EB_SIGNATURE_BYTES_MAX && parse_signature(file, signature, &legacy)) return EB_OK;
  if (legacy) {
    return eb_fail(error, EB_REFUSED, "sign with minisign -S of version 0.10 or later, without -l",
                   "the signature is one of minisign's legacy kind, which is not prehashed");
  }
  return eb_fail(error, EB_REFUSED, "sign the bundle with edgebuild, or with minisign -S without -c",
                 "the signature is malformed");
}

/* The next key of a trust file; *found is false at its end. */
static eb_status next_key(struct eb_reader *reader, unsigned *line_number, struct public_key *key, bool *found,
                          eb_error *error) {
  eb_bytes line;
  *found = false;
  while (!*found && take_line(reader, true, &line)) {
    ++*line_number;
    if (line.size == 0 || starts_with(line, "#") || starts_with(line, "untrusted comment:")) continue;
    uint8_t block[42];
    if (!base64_decode(line, block, sizeof block) || memcmp(block, "Ed", 2) != 0) {
      return eb_fail(error, EB_REFUSED, new_trust, "trust file, line %u: this is no public key of minisign",
                     *line_number);
    }
    memcpy(key->id, block + 2, sizeof key->id);
    memcpy(key->key, block + 10, sizeof key->key);
    *found = true;
  }
  return EB_OK;
}

/* Reads the whole trust file, so that a malformed one is refused whichever key signed. */
static eb_status find_key(eb_bytes trust, const uint8_t id[EB_KEY_ID_BYTES], struct public_key *key, eb_error *error) {
  if (trust.size > EB_TRUST_BYTES_MAX) return eb_fail(error, EB_REFUSED, new_trust, "the trust file is over 64 KiB");
  struct eb_reader reader = eb_reader_of(trust.data, trust.size);
  static const size_t id_size = EB_KEY_ID_BYTES;
  uint8_t ids[KEYS_MAX + 1][EB_KEY_ID_BYTES];
  size_t count = 0;
  unsigned line = 0;
  bool match = false, more = true;
  while (more) {
    struct public_key candidate;
    eb_status status = next_key(&reader, &line, &candidate, &more, error);
    if (status) return status;
    if (!more) break;
    for (size_t i = 0; i < count; i++) {
      if (memcmp(ids[i], candidate.id, id_size) == 0) {
        return eb_fail(error, EB_REFUSED, new_trust, "trust file, line %u: this key id occurs twice", line);
      }
    }
    memcpy(ids[count++], candidate.id, id_size);
    if (memcmp(candidate.id, id, id_size) == 0) {
      *key = candidate;
      match = true;
    }
  }
  if (count == 0) return eb_fail(error, EB_REFUSED, new_trust, "the trust file has no key");
  if (match) return EB_OK;
  char text[17];
  eb_key_id_text(id, text);
  return eb_fail(error, EB_REFUSED, "add the signer's public key to the trust file, if you trust it",
                 "the bundle is signed by the key %s, which the trust file does not list", text);
}

static bool signature_holds(const struct eb_signature *signature, eb_bytes message, const struct public_key *key) {
  uint8_t hash[64];
  eb_blake2b_512(message.data, message.size, hash);
  if (!eb_ed25519_verify(signature->signature, hash, sizeof hash, key->key)) return false;
  uint8_t global[64 + EB_SIGNATURE_BYTES_MAX];
  memcpy(global, signature->signature, 64);
  memcpy(global + 64, signature->comment.data, signature->comment.size);
  return eb_ed25519_verify(signature->global_signature, global, 64 + signature->comment.size, key->key);
}

eb_status eb_signature_verify(const struct eb_signature *signature, eb_bytes message, eb_bytes trust, eb_error *error) {
  struct public_key key;
  eb_status status = find_key(trust, signature->key_id, &key, error);
  if (status || signature_holds(signature, message, &key)) return status;
  return eb_fail(error, EB_REFUSED, "the bundle was changed after it was signed; get it again from its source",
                 "the signature does not hold");
}

void eb_key_id_text(const uint8_t key_id[EB_KEY_ID_BYTES], char text[17]) {
  for (unsigned i = 0; i < EB_KEY_ID_BYTES; i++) snprintf(text + 2 * i, 3, "%02X", key_id[EB_KEY_ID_BYTES - 1 - i]);
}
