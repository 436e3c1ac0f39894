/* Which operators all threads share and which the caller runs alone: found out by trying, on this machine, under its
 * load.
 *
 * Handing an operator to other threads costs about a microsecond, and tens of them when they sleep: more than a small
 * operator takes. The first runs take turns with and without the other threads and note the time of each operator, a
 * few more try the better way for each, and the fastest of the three ways is kept: for few runs at first, because the
 * machine may have been busy for a moment, then for thousands. The results are the same all the time. */
#ifndef EB_TRIAL_H
#define EB_TRIAL_H

#include "pool.h"

enum eb_way { EB_WAY_ALONE, EB_WAY_TOGETHER, EB_WAY_MIXED, EB_WAY_COUNT };

/* The least time of a step in either way. */
struct eb_step_times {
  uint64_t ns[EB_WAY_MIXED];
};

struct eb_trial {
  struct eb_pool *pool;
  struct eb_step *steps;
  uint32_t count;
  uint32_t turn, rest, last_rest; /* runs of this trial, until the next, and from the last to this */
  enum eb_way way;
  uint64_t best_ns[EB_WAY_COUNT]; /* of whole runs */
  struct eb_step_times *times;
};

/* `times` has room for `count` steps. */
void eb_trial_open(struct eb_trial *trial, struct eb_pool *pool, struct eb_step *steps, uint32_t count,
                   struct eb_step_times *times);

/* Runs all steps once. */
void eb_trial_run(struct eb_trial *trial);

#endif
