/* The canary (SPEC 11): does a release, run by its own runtime, reproduce its golden outputs in time? */
#ifndef EB_CANARY_H
#define EB_CANARY_H

#include "store.h"

/* `head` is that of a release whose files are all in the store; `trust_path` is what its runtime is told to trust.
 * EB_CHECK: it failed; another status: it could not be tried. */
eb_status eb_canary(struct eb_store *store, const struct eb_head *head, const char *trust_path,
                    const struct eb_cpu *cpu, eb_error *error);

#endif
