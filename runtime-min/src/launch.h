/* Starts the runtime that a release brings along, in a process of its own. */
#ifndef EB_LAUNCH_H
#define EB_LAUNCH_H

#include "store.h"

/* A sealed copy of the release's edgebuild-run, to be executed. `head` was verified. */
eb_status eb_launch_open(struct eb_store *store, const struct eb_head *head, const struct eb_cpu *cpu, int *fd,
                         eb_error *error);

/* In a new process of `parent`: its standard streams, the descriptors `streams` (-1: the parent's), the signal
 * that ends it when its parent dies, then the runtime. Exits with EB_UNSUPPORTED when that cannot be executed, with
 * EB_MEMORY when it could not be now. */
_Noreturn void eb_launch_become(int runtime, char *const *argv, const int streams[3], pid_t parent, int death_signal);

/* waitpid, which no signal interrupts. */
pid_t eb_launch_look(pid_t child, int *ended, int options);

/* Whether an exit code says that the release never came to run: memory was short, or the dynamic loader gave up. */
bool eb_launch_failed(int code);

#endif
