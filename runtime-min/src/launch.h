/* Starts the runtime that a release brings along, in a process of its own. */
#ifndef EB_LAUNCH_H
#define EB_LAUNCH_H

#include "store.h"

/* A sealed copy of the release's edgebuild-run, to be executed. `head` was verified. */
eb_status eb_launch_open(struct eb_store *store, const struct eb_head *head, const struct eb_cpu *cpu, int *fd,
                         eb_error *error);

/* In a new process: its standard streams, descriptor `input`, `output` and `errors` (-1: leave it), the end that it
 * meets when its parent dies, then the runtime. Exits with EB_UNSUPPORTED when that cannot be executed. */
_Noreturn void eb_launch_become(int runtime, char *const *argv, int input, int output, int errors, int death_signal);

#endif
