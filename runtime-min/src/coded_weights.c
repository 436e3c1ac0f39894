#include <string.h>

#include "coded.h"
#include "numbers.h"

#define CHUNK EB_CODED_CHUNK
#define LIMIT_WHOLE 1023u /* updates that a model of weights remembers: their statistics hardly drift */
#define LIMIT_VALUE 255u

#define BYTE_CLASSES 16u /* magnitudes up to 256 */
#define BYTE_BITS EB_NUMBER_BITS(BYTE_CLASSES)
#define WORD_BITS EB_NUMBER_BITS(EB_NUMBER_CLASSES_MAX)

#define MODELS 9u       /* contexts of a byte */
#define CONTEXTS 512u   /* values of each */
#define VALUE_MODELS 4u /* contexts of a 32-bit number */
#define VALUE_CONTEXTS 64u
#define LANES 64u

/* Of differences of words: their trailing zeros, and what is before them. */
enum kind { KIND_FINE, KIND_STEP, KIND_FLOAT_FINE, KIND_FLOAT_STEP, KIND_COUNT };

struct state {
  struct eb_predictor predictor;
  eb_counter flag[4]; /* bits about a whole tensor */
  struct eb_mixer flag_mixer[4];
  eb_counter byte[MODELS][CONTEXTS][BYTE_BITS];
  struct eb_mixer byte_mixer[4][BYTE_BITS];
  eb_counter value[KIND_COUNT][VALUE_MODELS][VALUE_CONTEXTS][WORD_BITS];
  struct eb_mixer value_mixer[KIND_COUNT][WORD_BITS];
  /* Biases and multipliers of one operator follow each other, a word for each channel. */
  uint8_t side[CHUNK / 4];   /* what is known of a word from the other tensor */
  uint8_t change[CHUNK / 4]; /* how the words of the last tensor changed */
  int16_t past[256];         /* the last differences, a ring */
  uint16_t lane_size[LANES]; /* how large they were, by position modulo LANES; 16 is 1 */
  int16_t lane_lean[LANES];  /* and how they leaned, times the old value's sign */
  union {
    uint8_t byte[CHUNK];
    uint32_t word[CHUNK / 4];
  } before, after;
};

/* The words of a tensor, and the last numbers of theirs. */
struct words {
  enum kind kind;
  int32_t fine, step;
};

struct run {
  struct state *state;
  const struct eb_coded_io *io;
  eb_error *error;
};

size_t eb_coded_weights_memory(void) {
  return sizeof(struct state);
}

static unsigned code_flag(struct state *state, unsigned which, unsigned bit) {
  eb_counter *counter = &state->flag[which];
  return eb_code_bit(&state->predictor, &state->flag_mixer[which], &counter, 1, LIMIT_VALUE, bit);
}

static unsigned least(unsigned a, unsigned b) {
  return a < b ? a : b;
}

static unsigned sign_of(int32_t value) {
  return value == 0 ? 0 : value < 0 ? 1 : 2;
}

/* What the channels before this one in its tile make of the same input: behind a softmax the changes of all add up to
 * nothing. */
static int sum_of_tile(const int16_t *past, uint8_t at, unsigned lane) {
  int sum = 0;
  for (unsigned back = 4; back <= lane; back += 4) sum += past[(uint8_t)(at - back)];
  return sum;
}

/* What is known before a byte: its old value, and the differences before it. Weights are packed in tiles of lanes of 4,
 * a lane for each output channel: the same channel comes back after 64 bytes, the same input in another channel
 * after 4. */
static void byte_model(struct state *state, uint64_t place, int before, struct eb_number_model *model) {
  const int16_t *past = state->past;
  uint8_t at = (uint8_t)place;
  int one = past[(uint8_t)(at - 1)], two = past[(uint8_t)(at - 2)], three = past[(uint8_t)(at - 3)];
  int four = past[(uint8_t)(at - 4)], tile = past[(uint8_t)(at - 64)];
  int eight = past[(uint8_t)(at - 8)], twelve = past[(uint8_t)(at - 12)], sixteen = past[(uint8_t)(at - 16)];
  unsigned row = eb_magnitude(four) + eb_magnitude(eight) + eb_magnitude(twelve) + eb_magnitude(sixteen);
  unsigned long_row = row + eb_magnitude(past[(uint8_t)(at - 20)]) + eb_magnitude(past[(uint8_t)(at - 24)]) +
                      eb_magnitude(past[(uint8_t)(at - 28)]) + eb_magnitude(past[(uint8_t)(at - 32)]);
  unsigned near = eb_magnitude(one) + eb_magnitude(two) + eb_magnitude(three) + eb_magnitude(four);
  unsigned lane = (unsigned)place % LANES, size = eb_size_class(state->lane_size[lane]);
  unsigned wide = state->lane_size[lane / 4 * 4] + 0u + state->lane_size[lane / 4 * 4 + 1] +
                  state->lane_size[lane / 4 * 4 + 2] + state->lane_size[lane / 4 * 4 + 3];
  unsigned old_class = before == 0 ? 0 : least(1 + eb_size_class(eb_magnitude(before)), 8) * 2 - (before < 0);
  int lean = state->lane_lean[lane];
  unsigned leaning = lean > 24 ? 2 : lean < -24 ? 1 : 0;
  int sum = sum_of_tile(past, at, lane);
  unsigned context[MODELS] = {
      0,
      least(eb_magnitude(one), 3) * 64 + least(eb_magnitude(two), 3) * 16 +
          least(eb_size_class(eb_magnitude(three) + eb_magnitude(four)), 3) * 4 + least(eb_magnitude(tile), 3),
      size * 16 + least(eb_size_class(near), 15),
      old_class * 4 + leaning,
      least(eb_size_class(wide), 15) * 17 + old_class,
      least(eb_size_class(long_row), 15) * 17 + old_class,
      least(eb_size_class(row), 15) * 16 + least(size, 15),
      sign_of(one) * 81 + sign_of(two) * 27 + sign_of(tile) * 9 + sign_of(before) * 3 + leaning,
      (least(eb_size_class(eb_magnitude(sum)), 7) * 2 + (sum < 0)) * 16 + lane / 4,
  };
  model->count = MODELS;
  model->mixers = state->byte_mixer[least(eb_size_class(near), 3)];
  model->classes = BYTE_CLASSES;
  model->limit = LIMIT_WHOLE;
  for (unsigned i = 0; i < MODELS; i++) model->row[i] = state->byte[i][context[i] % CONTEXTS];
}

static void note_byte(struct state *state, uint64_t place, int before, int difference) {
  unsigned lane = (unsigned)place % LANES;
  state->past[(uint8_t)place] = (int16_t)difference;
  int size = (int)eb_magnitude(difference) * 16 - state->lane_size[lane];
  state->lane_size[lane] = (uint16_t)(state->lane_size[lane] + size / 8);
  int lean = (before < 0 ? -difference : difference) * 64 - state->lane_lean[lane];
  state->lane_lean[lane] = (int16_t)(state->lane_lean[lane] + lean / 8);
}

static void code_bytes(struct state *state, uint64_t place, size_t count, bool fresh) {
  for (size_t i = 0; i < count; i++, place++) {
    struct eb_number_model model;
    int before = (int8_t)state->before.byte[i], base = fresh ? 0 : before;
    byte_model(state, place, before, &model);
    int difference = eb_number_code(&state->predictor, &model, (int8_t)state->after.byte[i] - base);
    state->after.byte[i] = (uint8_t)(base + difference);
    note_byte(state, place, before, difference);
  }
}

/* A 32-bit number; `last` is the one of its kind before it. */
static int32_t code_value(struct state *state, unsigned kind, unsigned context, unsigned side, int32_t last,
                          int32_t value) {
  struct eb_number_model model = {.count = VALUE_MODELS,
                                  .mixers = state->value_mixer[kind],
                                  .classes = EB_NUMBER_CLASSES_MAX,
                                  .limit = LIMIT_VALUE};
  model.row[0] = state->value[kind][0][0];
  model.row[1] = state->value[kind][1][least(eb_size_class(eb_magnitude(last)), 31) * 2 + (last < 0)];
  model.row[2] = state->value[kind][2][context % VALUE_CONTEXTS];
  model.row[3] = state->value[kind][3][side % VALUE_CONTEXTS];
  return eb_number_code(&state->predictor, &model, value);
}

/* float32 as integers in the same order, each a number of its own: -0 is -1. */
static uint32_t ordered(uint32_t bits) {
  return bits >> 31 ? ~(bits & 0x7fffffffu) : bits;
}

static uint32_t from_ordered(uint32_t order) {
  return order >> 31 ? ~order | 0x80000000u : order;
}

/* The difference of two words: 0, or an odd number times a power of two, because an update moves biases and multipliers
 * in steps. */
static uint32_t code_difference(struct state *state, struct words *words, size_t place, uint32_t difference) {
  unsigned side = state->side[place];
  int32_t fine = difference ? 1 + __builtin_ctz(difference) : 0, step = 0;
  if (difference) {
    int32_t odd = (int32_t)difference >> (fine - 1);
    step = odd < 0 ? (odd - 1) / 2 : (odd + 1) / 2; /* 1, 3, 5 are 1, 2, 3 */
  }
  fine = words->fine = code_value(state, words->kind, 0, side, words->fine, fine);
  state->change[place] = 0;
  if (!fine) return 0;
  step = words->step = code_value(state, words->kind + 1, (unsigned)fine, side, words->step, step);
  state->change[place] = (uint8_t)(1 + least(eb_size_class(eb_magnitude(step)), 15) * 2 + (step < 0));
  uint32_t odd = 2u * (uint32_t)step + (step < 0 ? 1u : UINT32_MAX);
  return odd << (((unsigned)fine - 1) & 31);
}

static void code_words(struct state *state, struct words *words, size_t count) {
  bool floats = words->kind == KIND_FLOAT_FINE;
  for (size_t i = 0; i < count; i++) {
    uint32_t before = state->before.word[i], after = state->after.word[i];
    if (floats) {
      before = ordered(before);
      after = ordered(after);
    }
    after = before + code_difference(state, words, i, after - before);
    state->after.word[i] = floats ? from_ordered(after) : after;
  }
}

/* The tensors of space 1 on both sides of one; NULL: none. */
struct neighbours {
  const struct eb_plan_tensor *last, *next;
};

static eb_status read_old(const struct run *run, uint64_t offset, size_t size) {
  bool read = run->io->get_old(run->io->context, offset, &run->state->before, size, run->error);
  return read ? EB_OK : run->error->status;
}

static eb_status read_new(const struct run *run, uint64_t offset, size_t size) {
  if (!run->io->get_new) return EB_OK;
  bool read = run->io->get_new(run->io->context, offset, &run->state->after, size, run->error);
  return read ? EB_OK : run->error->status;
}

static eb_status put(const struct run *run, const void *data, size_t size) {
  return run->io->put(run->io->context, data, size, run->error) ? EB_OK : run->error->status;
}

/* What the encoder says of a whole tensor. */
struct facts {
  bool same;
  bool fresh; /* the new bytes are smaller than what they differ by */
};

static eb_status look(const struct run *run, const struct eb_plan_tensor *tensor, struct facts *facts) {
  uint64_t difference = 0, size = 0;
  facts->same = true;
  for (uint64_t at = 0; at < tensor->bytes; at += CHUNK) {
    size_t count = tensor->bytes - at < CHUNK ? (size_t)(tensor->bytes - at) : CHUNK;
    eb_status status = read_old(run, tensor->offset + at, count);
    if (!status) status = read_new(run, tensor->offset + at, count);
    if (status) return status;
    const uint8_t *before = run->state->before.byte, *after = run->state->after.byte;
    facts->same &= memcmp(before, after, count) == 0;
    for (size_t i = 0; i < count; i++) {
      difference += eb_magnitude((int8_t)after[i] - (int8_t)before[i]);
      size += eb_magnitude((int8_t)after[i]);
    }
  }
  facts->fresh = difference > size;
  return EB_OK;
}

static bool is_words(eb_dtype dtype) {
  return dtype == EB_F32 || dtype == EB_I32 || dtype == EB_I64;
}

/* Of biases: how large the multiplier is that stands behind them, in halves of octaves; of multipliers: how the biases
 * in front of them changed. Nothing where there is no such pair, or it does not fit. */
static eb_status look_aside(const struct run *run, const struct eb_plan_tensor *tensor,
                            const struct neighbours *beside) {
  struct state *state = run->state;
  const struct eb_plan_tensor *last = beside->last, *next = beside->next;
  memset(state->side, 0, sizeof state->side);
  if (tensor->bytes > CHUNK) return EB_OK;
  if (tensor->dtype == EB_F32 && last && last->dtype == EB_I32 && last->bytes == tensor->bytes) {
    memcpy(state->side, state->change, sizeof state->side);
  }
  if (tensor->dtype != EB_I32 || !next || next->dtype != EB_F32 || next->bytes != tensor->bytes) return EB_OK;
  eb_status status = read_old(run, next->offset, (size_t)next->bytes);
  for (size_t i = 0; !status && i < next->bytes / 4; i++) state->side[i] = state->before.word[i] >> 22 & 63;
  return status;
}

static eb_status code_tensor(const struct run *run, const struct eb_plan_tensor *tensor,
                             const struct neighbours *beside) {
  struct facts facts = {0};
  struct words words = {.kind = tensor->dtype == EB_F32 ? KIND_FLOAT_FINE : KIND_FINE};
  eb_status status = run->io->get_new ? look(run, tensor, &facts) : EB_OK;
  if (status) return status;
  facts.same = code_flag(run->state, 0, facts.same);
  if (!facts.same && !is_words(tensor->dtype)) facts.fresh = code_flag(run->state, 1, facts.fresh);
  memset(run->state->byte[0][0], 0, sizeof run->state->byte[0][0]);
  if (!facts.same && is_words(tensor->dtype)) status = look_aside(run, tensor, beside);
  if (facts.same) memset(run->state->change, 0, sizeof run->state->change);
  for (uint64_t at = 0; at < tensor->bytes && !status; at += CHUNK) {
    size_t count = tensor->bytes - at < CHUNK ? (size_t)(tensor->bytes - at) : CHUNK;
    status = read_old(run, tensor->offset + at, count);
    if (!status) status = read_new(run, tensor->offset + at, count);
    if (status) return status;
    if (facts.same) {
      memcpy(run->state->after.byte, run->state->before.byte, count);
    } else if (is_words(tensor->dtype)) {
      code_words(run->state, &words, count / 4);
    } else {
      code_bytes(run->state, at, count, facts.fresh);
    }
    status = put(run, run->state->after.byte, count);
  }
  return status;
}

/* Between tensors, and behind the last one, there are zeros; a file that has others there is not coded. */
static eb_status put_gap(const struct run *run, uint64_t offset, uint64_t size) {
  static const uint8_t zeros[64];
  eb_status status = EB_OK;
  while (size && !status) {
    size_t part = size < sizeof zeros ? (size_t)size : sizeof zeros;
    status = run->io->get_new ? read_new(run, offset, part) : EB_OK;
    if (!status && run->io->get_new && memcmp(run->state->after.byte, zeros, part) != 0) {
      return eb_fail(run->error, EB_REFUSED, "code it otherwise", "weights.bin has bytes between its tensors");
    }
    if (!status) status = put(run, zeros, part);
    offset += part;
    size -= part;
  }
  return status;
}

static void open_state(struct state *state, struct eb_bit_coder coder) {
  memset(state, 0, sizeof *state);
  eb_predictor_open(&state->predictor, coder);
  eb_mixers_open(state->flag_mixer, 4, 1);
  eb_mixers_open(state->byte_mixer[0], sizeof state->byte_mixer / sizeof(struct eb_mixer), MODELS);
  eb_mixers_open(state->value_mixer[0], sizeof state->value_mixer / sizeof(struct eb_mixer), VALUE_MODELS);
}

/* The next tensor of space 1 from `index` on; false when there is none. */
static bool find_tensor(const struct eb_plan *plan, uint32_t *index, struct eb_plan_tensor *tensor) {
  for (; *index < plan->tensor_count; ++*index) {
    *tensor = eb_plan_tensor(plan, *index);
    if (tensor->in_weights) return true;
  }
  return false;
}

eb_status eb_coded_weights(void *memory, struct eb_bit_coder coder, const struct eb_plan *plan,
                           const struct eb_coded_io *io, eb_error *error) {
  struct run run = {.state = memory, .io = io, .error = error};
  struct eb_plan_tensor last = {0}, tensor = {0}, next = {0};
  uint32_t index = 0;
  uint64_t at = 0;
  open_state(run.state, coder);
  bool found = find_tensor(plan, &index, &tensor);
  for (bool first = true; found; first = false) {
    index++;
    bool more = find_tensor(plan, &index, &next);
    if (tensor.offset < at) {
      return eb_fail(error, EB_REFUSED, "the compiler and this runtime disagree; compile the recipe again",
                     "plan.bin: a tensor of weights.bin is not behind the one before it");
    }
    struct neighbours beside = {first ? NULL : &last, more ? &next : NULL};
    eb_status status = put_gap(&run, at, tensor.offset - at);
    if (!status) status = code_tensor(&run, &tensor, &beside);
    if (status) return status;
    at = tensor.offset + tensor.bytes;
    last = tensor;
    tensor = next;
    found = more;
  }
  return put_gap(&run, at, plan->weights_bytes - at);
}
