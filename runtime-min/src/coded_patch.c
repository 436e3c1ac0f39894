#include <string.h>

#include "coded.h"
#include "numbers.h"

#define CHUNK EB_CODED_CHUNK
#define FILE_MAX ((uint64_t)1 << 30)
#define LIMIT 255u
#define TREE 256u /* nodes of a byte's eight bits, from the highest */
#define HASHED ((size_t)1 << 18)
#define NUMBER_CONTEXTS 32u
#define NUMBER_BITS EB_NUMBER_BITS(EB_NUMBER_CLASSES_MAX)
#define MODELS 3u

enum kind { KIND_COPY, KIND_EXTRA, KIND_SEEK, KIND_COUNT };

struct state {
  struct eb_predictor predictor;
  eb_counter number[KIND_COUNT][2][NUMBER_CONTEXTS][NUMBER_BITS];
  struct eb_mixer number_mixer[KIND_COUNT][NUMBER_BITS];
  int32_t last[KIND_COUNT];
  /* Is a copied byte changed? By the last eight answers; by the old byte; by how long ago and which change was last. */
  eb_counter changed[MODELS][TREE * 16];
  struct eb_mixer changed_mixer[TREE];
  /* By what? */
  eb_counter change[2][TREE][TREE];
  eb_counter change_alone[TREE];
  struct eb_mixer change_mixer[TREE];
  uint8_t answers, change_before;
  uint32_t since;
  /* Bytes of its own, by the two before them. */
  eb_counter own_alone[TREE], own_by_one[TREE][TREE], own_by_two[HASHED];
  struct eb_mixer own_mixer[TREE];
  uint8_t one, two; /* the last bytes of the new file */
  uint8_t before[CHUNK], after[CHUNK];
};

struct run {
  struct state *state;
  const struct eb_coded_io *io;
  eb_error *error;
  uint64_t old_size, new_size, at, cursor;
};

size_t eb_coded_patch_memory(void) {
  return sizeof(struct state);
}

static int32_t code_number(struct state *state, enum kind kind, int32_t value) {
  int32_t last = state->last[kind];
  unsigned recent = eb_size_class(eb_magnitude(last));
  struct eb_number_model model = {
      .count = 2, .mixers = state->number_mixer[kind], .classes = EB_NUMBER_CLASSES_MAX, .limit = LIMIT};
  model.row[0] = state->number[kind][0][0];
  model.row[1] = state->number[kind][1][recent % NUMBER_CONTEXTS];
  return state->last[kind] = eb_number_code(&state->predictor, &model, value);
}

/* A byte from its highest bit on; trees[i] has TREE counters. */
static uint8_t code_tree(struct state *state, eb_counter *const trees[MODELS], struct eb_mixer *mixers, uint8_t value) {
  unsigned node = 1;
  for (int bit = 7; bit >= 0; bit--) {
    eb_counter *counters[MODELS];
    for (unsigned i = 0; i < MODELS; i++) counters[i] = &trees[i][node];
    node = node << 1 | eb_code_bit(&state->predictor, &mixers[node], counters, MODELS, LIMIT, value >> bit & 1);
  }
  return (uint8_t)node;
}

static uint8_t code_change(struct state *state, uint8_t before, uint8_t change) {
  unsigned since = eb_size_class(state->since);
  eb_counter *counters[MODELS] = {
      &state->changed[0][state->answers],
      &state->changed[1][(unsigned)before << 4 | (state->answers & 15u)],
      &state->changed[2][(unsigned)state->change_before << 4 | (since < 15 ? since : 15)],
  };
  unsigned changed =
      eb_code_bit(&state->predictor, &state->changed_mixer[state->answers], counters, MODELS, LIMIT, change != 0);
  state->answers = (uint8_t)(state->answers << 1 | changed);
  state->since++;
  if (!changed) return 0;
  eb_counter *const trees[MODELS] = {state->change_alone, state->change[0][before],
                                     state->change[1][state->change_before]};
  state->change_before = code_tree(state, trees, state->change_mixer, change);
  state->since = 0;
  return state->change_before;
}

static uint8_t code_own(struct state *state, uint8_t value) {
  size_t hash = ((size_t)state->one << 8 | state->two) * 0x9e5u % (HASHED / TREE) * TREE;
  eb_counter *const trees[MODELS] = {state->own_alone, state->own_by_one[state->one], state->own_by_two + hash};
  return code_tree(state, trees, state->own_mixer, value);
}

static void note(struct state *state, uint8_t value) {
  state->two = state->one;
  state->one = value;
}

static eb_status refuse(const struct run *run) {
  return eb_fail(run->error, EB_REFUSED, "make the delta again: edgebuild delta", "the delta's patch is malformed");
}

/* `size` bytes of the new file: of the old one with changes, or of its own. */
static eb_status code_run(struct run *run, uint32_t size, bool copied) {
  struct state *state = run->state;
  while (size) {
    size_t count = size < CHUNK ? size : CHUNK;
    const struct eb_coded_io *io = run->io;
    if (copied && !io->get_old(io->context, run->cursor, state->before, count, run->error)) return run->error->status;
    if (io->get_new && !io->get_new(io->context, run->at, state->after, count, run->error)) return run->error->status;
    for (size_t i = 0; i < count; i++) {
      uint8_t before = copied ? state->before[i] : 0;
      uint8_t change = (uint8_t)(state->after[i] - before);
      state->after[i] = (uint8_t)(before + (copied ? code_change(state, before, change) : code_own(state, change)));
      note(state, state->after[i]);
    }
    if (!io->put(io->context, state->after, count, run->error)) return run->error->status;
    run->at += count;
    if (copied) run->cursor += count;
    size -= (uint32_t)count;
  }
  return EB_OK;
}

static eb_status code_seek(struct run *run, const struct eb_patch_step *step) {
  int64_t cursor = (int64_t)run->cursor + code_number(run->state, KIND_SEEK, step ? (int32_t)step->seek : 0);
  if (cursor < 0 || (uint64_t)cursor > run->old_size) return refuse(run);
  run->cursor = (uint64_t)cursor;
  return EB_OK;
}

static eb_status code_step(struct run *run, const struct eb_patch_step *step) {
  struct state *state = run->state;
  uint32_t copy = (uint32_t)code_number(state, KIND_COPY, step ? (int32_t)step->copy : 0);
  uint32_t extra = (uint32_t)code_number(state, KIND_EXTRA, step ? (int32_t)step->extra : 0);
  uint64_t left = run->new_size - run->at;
  if (copy > left || extra > left - copy || copy + extra == 0) return refuse(run);
  if (copy > run->old_size - run->cursor) return refuse(run);
  eb_status status = code_run(run, copy, true);
  if (!status) status = code_run(run, extra, false);
  return status || run->at == run->new_size ? status : code_seek(run, step);
}

static void open_state(struct state *state, struct eb_bit_coder coder) {
  memset(state, 0, sizeof *state);
  eb_predictor_open(&state->predictor, coder);
  eb_mixers_open(state->number_mixer[0], sizeof state->number_mixer / sizeof(struct eb_mixer), 2);
  eb_mixers_open(state->changed_mixer, TREE, MODELS);
  eb_mixers_open(state->change_mixer, TREE, MODELS);
  eb_mixers_open(state->own_mixer, TREE, MODELS);
}

eb_status eb_coded_patch(void *memory, struct eb_bit_coder coder, uint64_t old_size, uint64_t new_size,
                         const struct eb_patch_step *steps, const struct eb_coded_io *io, eb_error *error) {
  struct run run = {.state = memory, .io = io, .error = error, .old_size = old_size, .new_size = new_size};
  if (old_size > FILE_MAX || new_size > FILE_MAX) return refuse(&run);
  open_state(run.state, coder);
  eb_status status = code_seek(&run, steps);
  while (!status && run.at < new_size) {
    status = code_step(&run, steps ? ++steps : NULL);
  }
  return status;
}
