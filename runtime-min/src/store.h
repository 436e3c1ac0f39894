/* The store (SPEC 11): what is in it, and its locks. */
#ifndef EB_STORE_H
#define EB_STORE_H

#include "disk.h"
#include "state.h"

struct eb_store {
  const char *path;
  struct eb_folder root, blobs, partial, releases, functions, trusts;
  int lock;       /* of who installs or removes; -1: not held */
  int state_lock; /* of who changes a state */
  bool accelerated;
};

extern const struct eb_store eb_store_closed;

/* `make`: it may be written to, and is there afterwards. Needs eb_store_close after a failure too. */
eb_status eb_store_open(struct eb_store *store, const char *path, bool make, const struct eb_cpu *cpu, eb_error *error);
void eb_store_close(struct eb_store *store);

/* For who installs or removes, until the store is closed; clears away what another one left unfinished. */
eb_status eb_store_lock(struct eb_store *store, eb_error *error);

/* The state of a name; *found is false where nothing is installed under it (all that `state` may say then is which
 * releases are bad). */
eb_status eb_store_state(const struct eb_store *store, const char *name, struct eb_state *state, bool *found,
                         eb_error *error);

/* The same, to change it: nobody else does until eb_store_state_end, which writes `state` unless it is NULL. */
eb_status eb_store_state_begin(struct eb_store *store, const char *name, struct eb_state *state, bool *found,
                               eb_error *error);
eb_status eb_store_state_end(struct eb_store *store, const char *name, const struct eb_state *state, eb_error *error);

/* The head of a release, read (SPEC 2, step 1) and with the right ID. A release that is not there, or is another one,
 * is refused; what cannot be read is EB_IO. */
eb_status eb_store_head(const struct eb_store *store, const char *id, struct eb_head *head, eb_error *error);

/* The files of the release `id`. */
eb_files eb_store_files(struct eb_store *store, const char *id);

/* The feed of its head, for eb_load; *fd is to be closed. */
eb_status eb_store_head_feed(const struct eb_store *store, const char *id, int *fd, eb_feed *feed, eb_error *error);

/* Whether the blob of a file is there with its size and hash. */
eb_status eb_store_holds(const struct eb_store *store, const struct eb_file *file, bool *holds, eb_error *error);

/* The same for all files of a manifest. */
eb_status eb_store_holds_all(const struct eb_store *store, const struct eb_manifest *manifest, bool *holds,
                             eb_error *error);

/* The same without reading it, and how much has arrived of one that is not there: by their sizes. */
eb_status eb_store_arrived(const struct eb_store *store, const struct eb_file *file, uint64_t *bytes, eb_error *error);

#endif
