/* Signatures and public keys in minisign's format (SPEC 3 and 4). */
#ifndef EB_MINISIGN_H
#define EB_MINISIGN_H

#include "status.h"

#define EB_KEY_ID_BYTES 8u
#define EB_SIGNATURE_BYTES_MAX ((size_t)1 << 10)
#define EB_TRUST_BYTES_MAX ((size_t)64 << 10)

struct eb_signature {
  uint8_t key_id[EB_KEY_ID_BYTES];
  uint8_t signature[64];
  uint8_t global_signature[64];
  eb_bytes comment; /* inside the file, without "trusted comment: " */
};

/* The file's form only. */
eb_status eb_signature_parse(eb_bytes file, struct eb_signature *signature, eb_error *error);

/* Both signatures, over `message` and over the comment, by the key of that id in the trust file. */
eb_status eb_signature_verify(const struct eb_signature *signature, eb_bytes message, eb_bytes trust, eb_error *error);

/* Key id as minisign prints it: most significant byte first. */
void eb_key_id_text(const uint8_t key_id[EB_KEY_ID_BYTES], char text[17]);

#endif
