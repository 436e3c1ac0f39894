/* Every unit of every operator is done once and before the operator is over, whatever the threads do in between. */
#include <stdio.h>
#include <time.h>

#include "pool.h"

enum { UNITS = 1000, THREADS = 4, ROUNDS = 3000, SCRATCH = 64 };

static uint32_t seen[UNITS];

static void count(void *const *args, void *scratch, int32_t begin, int32_t end) {
  uint32_t *units = args[0];
  *(int32_t *)scratch = begin;
  for (int32_t i = begin; i < end; i++) units[i]++;
}

/* Now and then long enough for the workers to fall asleep. */
static void rest(int round) {
  struct timespec pause = {.tv_nsec = round % 100 == 0 ? 300000 : round % 10 == 0 ? 45000 : 0};
  if (pause.tv_nsec) nanosleep(&pause, NULL);
}

int main(void) {
  static struct eb_pool pool;
  static uint8_t scratch[THREADS * SCRATCH] __attribute__((aligned(64)));
  eb_error error;
  if (eb_pool_start(&pool, THREADS, scratch, SCRATCH, &error)) return puts(error.message), 1;
  void *const args[] = {seen};
  for (int round = 0; round < ROUNDS; round++) {
    int32_t grain = 1 + round % 400;
    uint64_t most = round % 3 ? UINT64_MAX : (uint64_t)round % 9;
    struct eb_step step = {.kernel = count, .args = args, .work = UNITS, .grain = grain};
    step.pieces = eb_pool_pieces(&pool, UNITS, grain, most);
    if (UNITS / step.pieces < grain) return puts("a piece is smaller than the grain"), 1;
    rest(round);
    eb_pool_run(&pool, &step, round % 7 != 0);
    for (int i = 0; i < UNITS; i++) {
      if (seen[i] != (uint32_t)round + 1) return printf("round %d: unit %d ran %u times\n", round, i, seen[i]), 1;
    }
  }
  eb_pool_stop(&pool);
  puts("every unit ran once");
  return 0;
}
