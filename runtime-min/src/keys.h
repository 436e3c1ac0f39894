/* Whose signatures count for a store, and what day it is (SPEC 11): what was accepted once is followed, never left. */
#ifndef EB_KEYS_H
#define EB_KEYS_H

#include "store.h"

struct eb_keys {
  eb_bytes file; /* the trust file that counts; inside one of the buffers */
  uint8_t given[EB_TRUST_BYTES_MAX + 1];
  size_t given_size;
  bool is_given;
  uint8_t stored[EB_TRUST_BYTES_MAX + 1];
  size_t stored_size;
  bool is_stored;
  uint8_t older[EB_TRUST_BYTES_MAX + 1];
};

/* For an installation. keys->given was read. A given file must follow the store's, or is older than that, which counts
 * then. */
eb_status eb_keys_to_install(const struct eb_store *store, struct eb_keys *keys, eb_error *error);

/* To run the release `id`, which was installed: its signer is looked for in the store's trust file, or a given one that
 * follows it, and then in those that the store accepted before. No given file keeps a release from running that the
 * store's allows. */
eb_status eb_keys_to_run(const struct eb_store *store, struct eb_keys *keys, const char *id, eb_error *error);

/* Something of a name that is signed: its release counter and its days (0: none). */
struct eb_dated {
  const char *name;
  uint32_t number, made, expires;
  const char *signer;
};

/* Whether it counts today; `what` is for messages. */
eb_status eb_keys_expiry(const struct eb_store *store, const struct eb_keys *keys, const char *what,
                         const struct eb_dated *dated, eb_error *error);

/* It was accepted: the day that it was made on and the trust file are remembered. */
eb_status eb_keys_accept(const struct eb_store *store, const struct eb_keys *keys, const struct eb_dated *dated,
                         eb_error *error);

/* A release counter that a key has raised which the trust file that counts does not list is forgotten. */
void eb_keys_forget(const struct eb_keys *keys, struct eb_state *state);

/* A trust file that was found beside a release: where it follows the one that counts, both with roles, it is
 * remembered, and counts from now on. */
eb_status eb_keys_follow(const struct eb_store *store, struct eb_keys *keys, eb_bytes file, eb_error *error);

/* Whether the newest trust file of the store lists this signer, or there is none. */
eb_status eb_keys_lists(const struct eb_store *store, const char signer[17], bool *lists, eb_error *error);

/* The store's time floor, and the release that said so. */
struct eb_floor {
  uint32_t date;           /* 0: none */
  char name[EB_NAME_TEXT]; /* empty: a trust file, or a store that did not note it */
  uint32_t number;
  char signer[EB_SIGNER_TEXT];
};

/* `text` ends with NUL. */
bool eb_floor_parse(const char *text, size_t size, struct eb_floor *floor);

eb_status eb_keys_floor(const struct eb_store *store, struct eb_floor *floor, eb_error *error);

#endif
