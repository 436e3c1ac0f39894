/* Installation (SPEC 11): a release becomes the current one, or nothing changes.
 *
 * Whatever a release comes in (a bundle's archive, a delta) does the same: eb_install_begin with its head, for each
 * file of the manifest in its order eb_install_file and, where that says so, the file's bytes, then eb_install_commit.
 */
#ifndef EB_INSTALL_H
#define EB_INSTALL_H

#include "gc.h"
#include "keys.h"

struct eb_install {
  struct eb_store *store; /* locked */
  struct eb_keys *keys;   /* given was read */
  const char *trust_path; /* for the canary; NULL: the store's */
  const struct eb_cpu *cpu;
  const char *named; /* the ID of the one release that may come; NULL: any */
  struct eb_head *head;
  struct eb_state state; /* before, and behind eb_install_commit after it; valid if `found` */
  bool found;
  bool current;  /* the release is the current one: only what is damaged is written again */
  bool complete; /* and nothing is: its files need not be read */
  /* The file that is arriving. */
  int fd;
  char name[EB_ID_TEXT];
  const struct eb_file *file;
  uint64_t size; /* hashed so far */
  struct eb_sha256 hash;
  size_t held;      /* bytes in `buffer` that are not hashed yet */
  uint64_t resumed; /* bytes of it that had arrived before */
  bool stale;       /* they were not the file's and are gone: the same source, from its start, may be the right one */
  uint8_t *buffer;
  uint8_t *head_bytes;
  size_t head_size;
  struct eb_arena memory;
  /* What was done. */
  uint64_t written; /* bytes of files */
  uint64_t kept;    /* bytes of files that were there */
  uint32_t files_written;
  struct eb_gc_result removed;
  eb_error warning; /* why nothing was removed */
};

/* A release by what its manifest says, or an index. */
struct eb_named_release {
  const char *name, *target, *id;
  uint32_t number;
};

/* Whether it may be installed over what is installed under its name (SPEC 11): refused otherwise. */
eb_status eb_install_allows(const struct eb_state *state, const struct eb_named_release *release, eb_error *error);

/* Gets the memory; `install` has store, keys, trust_path and cpu. Needs eb_install_close after a failure too. */
eb_status eb_install_open(struct eb_install *install, eb_error *error);
void eb_install_close(struct eb_install *install);

/* install->head was read (eb_head_read): verifies it and decides whether the release may be installed. When it is
 * `complete` then, eb_install_commit is next. */
eb_status eb_install_begin(struct eb_install *install, eb_error *error);

/* The file `index` of the manifest: *from is its size when the store has it, else how much of it has arrived before.
 * Only in the latter case the bytes from there on follow, with eb_install_add and eb_install_file_end. `resume`:
 * whether the source can go on in the middle. */
eb_status eb_install_file(struct eb_install *install, uint32_t index, bool resume, uint64_t *from, bool *wanted,
                          eb_error *error);
eb_status eb_install_add(struct eb_install *install, const void *data, size_t size, eb_error *error);
eb_status eb_install_file_end(struct eb_install *install, eb_error *error);

/* The file that is arriving will not go on from here. */
void eb_install_drop(struct eb_install *install);

/* All files are there: head, canary, state, and what nobody needs any more is removed. */
eb_status eb_install_commit(struct eb_install *install, eb_error *error);

/* What is current may have become so a moment before its installation was ended: durable it becomes now, and what
 * nobody needs any more is removed. */
eb_status eb_install_settle(struct eb_install *install, eb_error *error);

/* All of it, from a bundle's archive. */
eb_status eb_install_archive(struct eb_install *install, const eb_feed *feed, eb_error *error);

#endif
