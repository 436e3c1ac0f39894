/* Frames in, JSON lines out. */
#ifndef EB_RUNNER_H
#define EB_RUNNER_H

#include "arena.h"
#include "json.h"
#include "latency.h"
#include "options.h"

struct eb_runner {
  eb_model *model;
  const struct eb_options *options;
  uint32_t threads;
  struct eb_json *out;
  uint64_t frames;
  uint64_t next_tick_ns; /* timer trigger; 0 before the first frame */
  struct eb_arena memory;
  struct eb_source *source; /* one for each input */
  uint64_t *op_ns;          /* --profile: the operators of one run, and the least of all runs */
  uint64_t *op_least_ns;
  struct eb_latency *all;   /* every run */
  struct eb_latency *frame; /* the runs of one frame */
};

/* Opens the inputs and gets all memory that the frames need. */
eb_status eb_runner_open(struct eb_runner *runner, eb_error *error);

/* Runs until the input ends, standard output is closed, or an input is wrong. */
eb_status eb_runner_run(struct eb_runner *runner, eb_error *error);

/* The summary, and the profile when it was asked for. */
void eb_runner_report(const struct eb_runner *runner, struct eb_json *out);

void eb_runner_close(struct eb_runner *runner);

#endif
