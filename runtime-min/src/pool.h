/* Threads that share the pieces of one operator at a time. */
#ifndef EB_POOL_H
#define EB_POOL_H

#include <pthread.h>
#include <stdatomic.h>

#include "program.h"
#include "status.h"

/* One operator, ready to be called. */
struct eb_step {
  eb_kernel_fn kernel;
  void *const *args;
  int32_t work;
  int32_t grain;
  int32_t pieces; /* 1: runs on the calling thread alone */
  bool shared;    /* faster with all threads */
};

struct eb_pool;

struct eb_worker {
  struct eb_pool *pool;
  void *scratch;
  pthread_t thread;
};

/* `ticket` is the number of the operator (upper 48 bits) and how many of its pieces nobody has taken yet (lower 16).
 * A piece is taken by a compare-and-swap of the whole word, so a worker that wakes late can take no piece of an
 * operator that is over, and `step` cannot change while a piece of it is free. */
struct eb_pool {
  _Alignas(64) atomic_uint_least64_t ticket;
  _Atomic(const struct eb_step *) step;
  _Alignas(64) atomic_uint done; /* finished pieces of the current operator; a futex */
  atomic_uint caller_waits;
  _Alignas(64) atomic_uint wake; /* a futex: changes when sleepers must look again */
  atomic_uint sleepers;          /* somebody sleeps, or is about to */
  atomic_bool stopping;
  atomic_bool running; /* more operators are about to come */
  uint32_t thread_count;
  uint32_t started;
  struct eb_worker worker[EB_THREADS_MAX]; /* 0 is the caller's */
};

/* Starts threads - 1 workers; `scratch` is `threads` areas of `scratch_bytes`. */
eb_status eb_pool_start(struct eb_pool *pool, uint32_t threads, uint8_t *scratch, size_t scratch_bytes,
                        eb_error *error);

/* In how many pieces an operator runs here: at most `most`, but one for each thread where its work allows that. */
int32_t eb_pool_pieces(const struct eb_pool *pool, int32_t work, int32_t grain, uint64_t most);

/* Steps are about to be run: wakes the threads, and keeps them awake for a while until eb_pool_end. */
void eb_pool_begin(struct eb_pool *pool);
void eb_pool_end(struct eb_pool *pool);

/* Runs a step, by all threads or by the caller alone; all of its pieces are done on return. */
void eb_pool_run(struct eb_pool *pool, const struct eb_step *step, bool together);

void eb_pool_stop(struct eb_pool *pool);

#endif
