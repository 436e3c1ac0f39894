#include "trial.h"

#include <string.h>

#include "clock.h"

#define ROUNDS 4u
#define MIXED_RUNS 4u
#define TRIAL_RUNS (2 * ROUNDS + MIXED_RUNS)
#define FIRST_REST 48u   /* runs from the first trial to the next: the machine may have been busy for a moment */
#define LAST_REST 4096u  /* the same in the long run: other programs come and go */
#define PIECE_NS 3000u   /* a piece that is worth fetching */
#define HANDOVER_NS 500u /* what an operator must gain to be shared */

void eb_trial_open(struct eb_trial *trial, struct eb_pool *pool, struct eb_step *steps, uint32_t count,
                   struct eb_step_times *times) {
  *trial = (struct eb_trial){.pool = pool, .steps = steps, .count = count, .times = times};
}

static bool is_shared(const struct eb_step *step, enum eb_way way) {
  return way == EB_WAY_TOGETHER || (way == EB_WAY_MIXED && step->shared);
}

static void run(struct eb_trial *trial) {
  const struct eb_step *end = trial->steps + trial->count;
  if (trial->way != EB_WAY_ALONE) eb_pool_begin(trial->pool);
  for (const struct eb_step *step = trial->steps; step != end; step++) {
    eb_pool_run(trial->pool, step, is_shared(step, trial->way));
  }
  if (trial->way != EB_WAY_ALONE) eb_pool_end(trial->pool);
}

static void lower(uint64_t *least, uint64_t value) {
  if (*least == 0 || value < *least) *least = value;
}

/* As run(), with the time of every step, so that the ways compare; a mixed run's steps are not noted. */
static void run_timed(struct eb_trial *trial) {
  uint64_t start = eb_clock_ns(), before = start;
  if (trial->way != EB_WAY_ALONE) eb_pool_begin(trial->pool);
  for (uint32_t i = 0; i < trial->count; i++) {
    eb_pool_run(trial->pool, &trial->steps[i], is_shared(&trial->steps[i], trial->way));
    uint64_t after = eb_clock_ns();
    if (trial->way != EB_WAY_MIXED) lower(&trial->times[i].ns[trial->way], after - before);
    before = after;
  }
  if (trial->way != EB_WAY_ALONE) eb_pool_end(trial->pool);
  lower(&trial->best_ns[trial->way], before - start);
}

/* Small operators are cut in as many pieces as are worth it. */
static void cut(struct eb_trial *trial) {
  for (uint32_t i = 0; i < trial->count; i++) {
    uint64_t most = trial->times[i].ns[EB_WAY_ALONE] / PIECE_NS;
    trial->steps[i].pieces = eb_pool_pieces(trial->pool, trial->steps[i].work, trial->steps[i].grain, most);
  }
}

static void choose_steps(struct eb_trial *trial) {
  for (uint32_t i = 0; i < trial->count; i++) {
    const uint64_t *ns = trial->times[i].ns;
    trial->steps[i].shared = trial->steps[i].pieces > 1 && ns[EB_WAY_TOGETHER] + HANDOVER_NS < ns[EB_WAY_ALONE];
  }
}

static enum eb_way fastest(const struct eb_trial *trial) {
  enum eb_way best = EB_WAY_ALONE;
  for (enum eb_way way = EB_WAY_TOGETHER; way < EB_WAY_COUNT; way++) {
    if (trial->best_ns[way] < trial->best_ns[best]) best = way;
  }
  return best;
}

/* The first run uses the threads: a large model's first result should not wait. */
static enum eb_way way_of(uint32_t turn) {
  if (turn >= 2 * ROUNDS) return EB_WAY_MIXED;
  return turn % 2 ? EB_WAY_ALONE : EB_WAY_TOGETHER;
}

static void forget(struct eb_trial *trial) {
  memset(trial->best_ns, 0, sizeof trial->best_ns);
  memset(trial->times, 0, trial->count * sizeof *trial->times);
}

/* Each trial rests twice as long as the one before. */
static void rest(struct eb_trial *trial) {
  trial->turn = 0;
  trial->rest = trial->last_rest ? 2 * trial->last_rest : FIRST_REST;
  if (trial->rest > LAST_REST) trial->rest = LAST_REST;
  trial->last_rest = trial->rest;
}

void eb_trial_run(struct eb_trial *trial) {
  if (trial->pool->thread_count == 1 || trial->rest) {
    if (trial->rest) trial->rest--;
    run(trial);
    return;
  }
  uint32_t turn = trial->turn++;
  if (turn == 0) forget(trial);
  trial->way = way_of(turn);
  run_timed(trial);
  if (trial->way == EB_WAY_ALONE) cut(trial);
  if (turn == 2 * ROUNDS - 1) choose_steps(trial);
  if (turn == TRIAL_RUNS - 1) {
    trial->way = fastest(trial);
    rest(trial);
  }
}
