#include "pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

#define PIECES_PER_THREAD 4u /* so that a slow or preempted core delays the others little */
#define PIECE_BITS 16
#define PIECE_MASK ((UINT64_C(1) << PIECE_BITS) - 1)
#define SPIN_NS 40000      /* waking a sleeper costs about as much */
#define SPIN_RUN_NS 400000 /* the same in the middle of a run, while the caller is busy with an operator of its own */

static void futex_wait(atomic_uint *word, unsigned expected) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint *word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void run_piece(const struct eb_step *step, void *scratch, int64_t piece) {
  int64_t begin = step->work * piece / step->pieces, end = step->work * (piece + 1) / step->pieces;
  step->kernel(step->args, scratch, (int32_t)begin, (int32_t)end);
}

/* Takes and runs one piece of the current operator; false when none is free. */
static bool work_once(struct eb_pool *pool, void *scratch) {
  uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
  for (;;) {
    uint64_t left = ticket & PIECE_MASK;
    if (left == 0) return false;
    const struct eb_step *step = atomic_load_explicit(&pool->step, memory_order_relaxed);
    if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket - 1)) continue;
    run_piece(step, scratch, (int64_t)left - 1);
    atomic_fetch_add(&pool->done, 1);
    if (atomic_load(&pool->caller_waits)) futex_wake_all(&pool->done);
    return true;
  }
}

static bool has_work(struct eb_pool *pool) {
  return (atomic_load(&pool->ticket) & PIECE_MASK) || atomic_load(&pool->stopping);
}

/* Looks for work for a while; false when there was none. */
static bool spin_for_work(struct eb_pool *pool) {
  int64_t start = (int64_t)eb_clock_ns(), spun;
  do {
    for (int i = 0; i < 32; i++) {
      if (has_work(pool)) return true;
      eb_cpu_pause();
    }
    spun = (int64_t)eb_clock_ns() - start;
  } while (spun < (atomic_load_explicit(&pool->running, memory_order_relaxed) ? SPIN_RUN_NS : SPIN_NS));
  return false;
}

/* The order of `sleepers` and `ticket` is the reverse of publish()'s, so that one of the two sees the other. */
static void sleep_until_work(struct eb_pool *pool) {
  unsigned seen = atomic_load(&pool->wake);
  atomic_store(&pool->sleepers, 1);
  if (!has_work(pool)) futex_wait(&pool->wake, seen);
}

static void wake_sleepers(struct eb_pool *pool) {
  if (!atomic_load(&pool->sleepers)) return;
  atomic_store(&pool->sleepers, 0);
  atomic_fetch_add(&pool->wake, 1);
  futex_wake_all(&pool->wake);
}

static void *worker_main(void *argument) {
  struct eb_worker *worker = argument;
  struct eb_pool *pool = worker->pool;
  eb_float_enter();
  while (!atomic_load(&pool->stopping)) {
    if (work_once(pool, worker->scratch)) continue;
    if (!spin_for_work(pool)) sleep_until_work(pool);
  }
  return NULL;
}

static void publish(struct eb_pool *pool, const struct eb_step *step) {
  atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
  atomic_store_explicit(&pool->step, step, memory_order_relaxed);
  uint64_t number = (atomic_load_explicit(&pool->ticket, memory_order_relaxed) >> PIECE_BITS) + 1;
  atomic_store(&pool->ticket, number << PIECE_BITS | (uint64_t)step->pieces);
  wake_sleepers(pool);
}

static void wait_until_done(struct eb_pool *pool, unsigned pieces) {
  int64_t end = 0;
  for (unsigned spins = 1; atomic_load_explicit(&pool->done, memory_order_acquire) != pieces; spins++) {
    eb_cpu_pause();
    if (spins % 32) continue;
    if (!end) end = (int64_t)eb_clock_ns() + SPIN_NS;
    if ((int64_t)eb_clock_ns() < end) continue;
    atomic_store(&pool->caller_waits, 1);
    unsigned done = atomic_load(&pool->done);
    if (done != pieces) futex_wait(&pool->done, done);
    atomic_store(&pool->caller_waits, 0);
  }
}

void eb_pool_run(struct eb_pool *pool, const struct eb_step *step, bool together) {
  if (!together || step->pieces == 1) {
    step->kernel(step->args, pool->worker[0].scratch, 0, step->work);
    return;
  }
  publish(pool, step);
  while (work_once(pool, pool->worker[0].scratch)) continue;
  wait_until_done(pool, (unsigned)step->pieces);
}

void eb_pool_begin(struct eb_pool *pool) {
  atomic_store_explicit(&pool->running, true, memory_order_relaxed);
  wake_sleepers(pool);
}

void eb_pool_end(struct eb_pool *pool) {
  atomic_store_explicit(&pool->running, false, memory_order_relaxed);
}

int32_t eb_pool_pieces(const struct eb_pool *pool, int32_t work, int32_t grain, uint64_t most) {
  uint64_t threads = pool->thread_count, possible = (uint64_t)(work / grain), wanted = threads * PIECES_PER_THREAD;
  if (threads == 1 || possible < 2) return 1;
  if (wanted > most) wanted = most > threads ? most : threads;
  return (int32_t)(possible < wanted ? possible : wanted);
}

eb_status eb_pool_start(struct eb_pool *pool, uint32_t threads, uint8_t *scratch, size_t scratch_bytes,
                        eb_error *error) {
  pool->thread_count = threads;
  pool->started = 1;
  sigset_t all, before;
  sigfillset(&all);
  /* Signals belong to the caller's threads. */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failure = 0;
  for (uint32_t i = 0; i < threads && !failure; i++) {
    struct eb_worker *worker = &pool->worker[i];
    *worker = (struct eb_worker){.pool = pool, .scratch = scratch + i * scratch_bytes};
    if (i == 0) continue;
    failure = pthread_create(&worker->thread, NULL, worker_main, worker);
    if (!failure) pool->started++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!failure) return EB_OK;
  eb_pool_stop(pool);
  return eb_fail(error, EB_MEMORY, "use fewer threads", "cannot start %u threads: %s", threads, strerror(failure));
}

void eb_pool_stop(struct eb_pool *pool) {
  atomic_store(&pool->stopping, true);
  atomic_store(&pool->sleepers, 1);
  wake_sleepers(pool);
  for (uint32_t i = 1; i < pool->started; i++) pthread_join(pool->worker[i].thread, NULL);
  pool->started = 0;
}
