/* Trust files (SPEC 4): whose signatures count, and which trust file may take the place of another. */
#ifndef EB_TRUST_H
#define EB_TRUST_H

#include "minisign.h"

#define EB_TRUST_BYTES_MAX ((size_t)64 << 10)
#define EB_ROOTS_MAX 16u
#define EB_RELEASE_KEYS_MAX 64u
#define EB_TRUST_KEYS_MAX (EB_TRUST_BYTES_MAX / 57 + 1) /* of a plain list: a key is 56 characters and a line feed */

struct eb_trust {
  uint32_t version; /* 0: a plain list of keys, which has release keys and nothing else */
  uint32_t made;    /* dates as date.h counts */
  uint32_t expires;
  uint32_t root_threshold;
  uint32_t root_count;
  uint32_t retired_count;
  uint32_t release_count;
  struct eb_key root[EB_ROOTS_MAX];
  struct eb_key retired[EB_ROOTS_MAX];
  struct eb_key release[EB_TRUST_KEYS_MAX];
  eb_bytes body; /* inside the file that was opened, as is `signatures` */
  eb_bytes signatures;
};

/* Reads either form. A file with roles is accepted only when it stands on its own; whether it has expired is not looked
 * at. `file` must stay valid as long as `trust` is used. */
eb_status eb_trust_open(eb_bytes file, struct eb_trust *trust, eb_error *error);

/* Whether `next` may take the place of `old`: it follows it, or is the same. Both were opened. */
eb_status eb_trust_follows(const struct eb_trust *old, const struct eb_trust *next, eb_error *error);

/* Both signatures, over `message` and over the comment, by a release key. */
eb_status eb_signature_verify(const struct eb_signature *signature, eb_bytes message, const struct eb_trust *trust,
                              eb_error *error);

#endif
