/* `run NAME` (SPEC 11): the current release in a process that is watched; three crashes in a row, and the previous one
 * is current again. */
#ifndef EB_SUPERVISE_H
#define EB_SUPERVISE_H

#include "keys.h"

struct eb_supervise {
  struct eb_store *store;
  const char *name;
  struct eb_keys *keys; /* given was read */
  const struct eb_cpu *cpu;
  /* The runtime's arguments, ended by NULL, with room for EB_SUPERVISE_ARGUMENTS more and the NULL. */
  const char **argv;
  /* Called when a release was given up, before the previous one starts. */
  void (*rolled_back)(void *context, const char *from, const char *to);
  /* Called when the state could not be changed; what is to run runs all the same. */
  void (*not_counted)(void *context, const eb_error *error);
  void *context;
  char instead[EB_ID_TEXT]; /* empty, or what runs instead of a release that was given up without the store's knowledge
                             */
};

#define EB_SUPERVISE_ARGUMENTS 4

/* Runs until the process ends that is not replaced by the previous release's; *code is its exit code, or 128 and the
 * number of the signal that ended it. */
eb_status eb_supervise(struct eb_supervise *run, int *code, eb_error *error);

#endif
