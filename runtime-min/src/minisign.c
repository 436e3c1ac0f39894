#include "minisign.h"

#include <stdio.h>
#include <string.h>

#include "crypto.h"
#include "reader.h"

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

static bool equals(eb_bytes line, const char *text) {
  return line.size == strlen(text) && eb_starts_with(line, text);
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
  if (!eb_read_line(&reader, false, &line) || !is_untrusted_comment(line)) return false;
  if (!eb_read_line(&reader, false, &line) || !base64_decode(line, block, sizeof block)) return false;
  *legacy = memcmp(block, "Ed", 2) == 0;
  if (memcmp(block, "ED", 2) != 0) return false;
  memcpy(signature->key_id, block + 2, sizeof signature->key_id);
  memcpy(signature->signature, block + 10, sizeof signature->signature);
  if (!eb_read_line(&reader, false, &line) || !eb_starts_with(line, trusted)) return false;
  signature->comment.data = (const uint8_t *)line.data + strlen(trusted);
  signature->comment.size = line.size - strlen(trusted);
  if (!is_text(signature->comment)) return false;
  return eb_read_line(&reader, false, &line) && base64_decode(line, signature->global_signature, 64) && reader.left == 0;
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

bool eb_key_parse(eb_bytes line, struct eb_key *key) {
  uint8_t block[42];
  if (!base64_decode(line, block, sizeof block) || memcmp(block, "Ed", 2) != 0) return false;
  memcpy(key->id, block + 2, sizeof key->id);
  memcpy(key->key, block + 10, sizeof key->key);
  return true;
}

bool eb_signature_holds(const struct eb_signature *signature, eb_bytes message, const struct eb_key *key) {
  uint8_t hash[64];
  eb_blake2b_512(message.data, message.size, hash);
  if (!eb_ed25519_verify(signature->signature, hash, sizeof hash, key->key)) return false;
  uint8_t global[64 + EB_SIGNATURE_BYTES_MAX];
  memcpy(global, signature->signature, 64);
  memcpy(global + 64, signature->comment.data, signature->comment.size);
  return eb_ed25519_verify(signature->global_signature, global, 64 + signature->comment.size, key->key);
}

void eb_key_id_text(const uint8_t key_id[EB_KEY_ID_BYTES], char text[17]) {
  for (unsigned i = 0; i < EB_KEY_ID_BYTES; i++) snprintf(text + 2 * i, 3, "%02X", key_id[EB_KEY_ID_BYTES - 1 - i]);
}
