/* Whatever the trials find out, every unit of every step runs once a run, and the steps run in order. */
#include <stdio.h>

#include "trial.h"

enum { UNITS = 512, THREADS = 3, STEPS = 4, RUNS = 4096 + 64, SCRATCH = 64 };

static uint32_t seen[STEPS][UNITS];

/* Unit i of a step follows unit i of the step before; `weary` units take a while. */
static void count(void *const *args, void *scratch, int32_t begin, int32_t end) {
  uint32_t *units = args[0];
  const uint32_t *before = args[1];
  volatile uint32_t *busy = scratch;
  uint32_t weary = *(const uint32_t *)args[2];
  for (int32_t i = begin; i < end; i++) {
    for (*busy = 0; *busy < weary;) *busy += 1;
    units[i] = before ? before[i] : units[i] + 1;
  }
}

int main(void) {
  static struct eb_pool pool;
  static uint8_t scratch[THREADS * SCRATCH] __attribute__((aligned(64)));
  static uint32_t weary[STEPS] = {0, 40, 0, 4};
  static const int32_t grain[STEPS] = {1, 1, UNITS, 64};
  void *args[STEPS][3];
  struct eb_step steps[STEPS];
  struct eb_step_times times[STEPS];
  struct eb_trial trial;
  eb_error error;
  if (eb_pool_start(&pool, THREADS, scratch, SCRATCH, &error)) return puts(error.message), 1;
  for (int i = 0; i < STEPS; i++) {
    args[i][0] = seen[i], args[i][1] = i ? seen[i - 1] : NULL, args[i][2] = &weary[i];
    steps[i] = (struct eb_step){.kernel = count, .args = args[i], .work = UNITS, .grain = grain[i]};
    steps[i].pieces = eb_pool_pieces(&pool, UNITS, grain[i], UINT64_MAX);
  }
  eb_trial_open(&trial, &pool, steps, STEPS, times);
  for (uint32_t run = 1; run <= RUNS; run++) {
    eb_trial_run(&trial);
    for (int i = 0; i < UNITS; i++) {
      if (seen[STEPS - 1][i] != run) return printf("run %u: unit %d is at %u\n", run, i, seen[STEPS - 1][i]), 1;
    }
  }
  eb_pool_stop(&pool);
  puts("every unit ran once a run");
  return 0;
}
