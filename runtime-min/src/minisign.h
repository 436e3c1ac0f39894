/* Signatures and public keys in minisign's format (SPEC 3). */
#ifndef EB_MINISIGN_H
#define EB_MINISIGN_H

#include "status.h"

#define EB_KEY_ID_BYTES 8u
#define EB_SIGNATURE_BYTES_MAX ((size_t)1 << 10)

struct eb_key {
  uint8_t id[EB_KEY_ID_BYTES];
  uint8_t key[32];
};

struct eb_signature {
  uint8_t key_id[EB_KEY_ID_BYTES];
  uint8_t signature[64];
  uint8_t global_signature[64];
  eb_bytes comment; /* inside the file, without "trusted comment: " */
};

/* One line of base64, without its end. */
bool eb_key_parse(eb_bytes line, struct eb_key *key);

/* The file's form only. */
eb_status eb_signature_parse(eb_bytes file, struct eb_signature *signature, eb_error *error);

/* Both signatures, over `message` and over the comment. */
bool eb_signature_holds(const struct eb_signature *signature, eb_bytes message, const struct eb_key *key);

/* Key id as minisign prints it: most significant byte first. */
void eb_key_id_text(const uint8_t key_id[EB_KEY_ID_BYTES], char text[17]);

#endif
