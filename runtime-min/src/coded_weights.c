#include <string.h>

#include "coded.h"
#include "numbers.h"

#define CHUNK EB_CODED_CHUNK
#define LIMIT_WHOLE 1023u /* updates that a model of weights remembers: their statistics hardly drift */
#define LIMIT_VALUE 255u

#define BYTE_CLASSES 16u /* magnitudes up to 256 */
#define BYTE_BITS EB_NUMBER_BITS(BYTE_CLASSES)
#define WORD_BITS EB_NUMBER_BITS(EB_NUMBER_CLASSES_MAX)

#define MODELS 6u       /* contexts of a byte */
#define CONTEXTS 512u   /* values of each */
#define VALUE_MODELS 3u /* contexts of a 32-bit number */
#define VALUE_CONTEXTS 64u
#define LANES 64u
#define RATIO_MOST 2048 /* ratios are 2^(n / 256) with |n| below it */

/* Of 32-bit numbers: an integer's trailing zeros and what is before them; a float's ratio and what it leaves. */
enum kind { KIND_FINE, KIND_STEP, KIND_RATIO, KIND_ULPS, KIND_COUNT };

struct state {
  struct eb_predictor predictor;
  eb_counter flag[4]; /* bits about a whole tensor */
  struct eb_mixer flag_mixer[4];
  eb_counter byte[MODELS][CONTEXTS][BYTE_BITS];
  struct eb_mixer byte_mixer[4][BYTE_BITS];
  eb_counter value[KIND_COUNT][VALUE_MODELS][VALUE_CONTEXTS][WORD_BITS];
  struct eb_mixer value_mixer[KIND_COUNT][WORD_BITS];
  uint32_t ratio[256];       /* mantissas of 2^(i / 256) as float32 */
  int16_t past[256];       /* the last differences, a ring */
  uint16_t lane_size[LANES]; /* how large they were, by position modulo LANES; 16 is 1 */
  int16_t lane_lean[LANES];  /* and how they leaned, times the old value's sign */
  union {
    uint8_t byte[CHUNK];
    uint32_t word[CHUNK / 4];
  } before, after;
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

/* What is known before a byte: its old value, the differences before it, those of its lane (weights are packed in tiles,
 * so that the same channel comes back every 64 bytes, or every 4). */
static void byte_model(struct state *state, uint64_t place, int before, struct eb_number_model *model) {
  const int16_t *past = state->past;
  uint8_t at = (uint8_t)place;
  int one = past[(uint8_t)(at - 1)], two = past[(uint8_t)(at - 2)], three = past[(uint8_t)(at - 3)];
  int four = past[(uint8_t)(at - 4)], tile = past[(uint8_t)(at - 64)];
  unsigned near = eb_magnitude(one) + eb_magnitude(two) + eb_magnitude(three) + eb_magnitude(four);
  unsigned lane = (unsigned)place % LANES, size = eb_size_class(state->lane_size[lane]);
  unsigned wide = state->lane_size[lane / 4 * 4] + 0u + state->lane_size[lane / 4 * 4 + 1] +
                  state->lane_size[lane / 4 * 4 + 2] + state->lane_size[lane / 4 * 4 + 3];
  unsigned old_class = before == 0 ? 0 : least(1 + eb_size_class(eb_magnitude(before)), 8) * 2 - (before < 0);
  int lean = state->lane_lean[lane];
  unsigned leaning = lean > 24 ? 2 : lean < -24 ? 1 : 0;
  unsigned context[MODELS] = {
      0,
      least(eb_magnitude(one), 3) * 64 + least(eb_magnitude(two), 3) * 16 + least(eb_size_class(eb_magnitude(three) + eb_magnitude(four)), 3) * 4 +
          least(eb_magnitude(tile), 3),
      size * 16 + least(eb_size_class(near), 15),
      old_class * 4 + leaning,
      least(eb_size_class(wide), 15) * 17 + old_class,
      sign_of(one) * 81 + sign_of(two) * 27 + sign_of(tile) * 9 + sign_of(before) * 3 + leaning,
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
static int32_t code_value(struct state *state, enum kind kind, unsigned context, int32_t last, int32_t value) {
  struct eb_number_model model = {.count = VALUE_MODELS,
                      .mixers = state->value_mixer[kind],
                      .classes = EB_NUMBER_CLASSES_MAX,
                      .limit = LIMIT_VALUE};
  model.row[0] = state->value[kind][0][0];
  model.row[1] = state->value[kind][1][least(eb_size_class(eb_magnitude(last)), 31) * 2 + (last < 0)];
  model.row[2] = state->value[kind][2][context % VALUE_CONTEXTS];
  return eb_number_code(&state->predictor, &model, value);
}

/* A difference is 0, or an odd number times a power of two: changes of biases come in steps. */
static void code_integers(struct state *state, size_t count) {
  int32_t last_fine = 0, last_step = 0;
  for (size_t i = 0; i < count; i++) {
    uint32_t difference = state->after.word[i] - state->before.word[i];
    int32_t fine = difference ? 1 + __builtin_ctz(difference) : 0, step = 0;
    if (difference) {
      int32_t odd = (int32_t)difference >> (fine - 1);
      step = odd < 0 ? (odd - 1) / 2 : (odd + 1) / 2; /* 1, 3, 5 are 1, 2, 3 */
    }
    fine = code_value(state, KIND_FINE, 0, last_fine, fine);
    last_fine = fine;
    if (fine) {
      step = code_value(state, KIND_STEP, (unsigned)fine, last_step, step);
      last_step = step;
      uint32_t odd = 2u * (uint32_t)step + (step < 0 ? 1u : UINT32_MAX);
      difference = odd << ((unsigned)(fine - 1) & 31);
    } else {
      difference = 0;
    }
    state->after.word[i] = state->before.word[i] + difference;
  }
}

/* float32 as integers in the same order, each a number of its own: -0 is -1. */
static int32_t ordered(uint32_t bits) {
  return (int32_t)(bits >> 31 ? ~(bits & 0x7fffffffu) : bits);
}

static uint32_t from_ordered(int32_t order) {
  return order < 0 ? ~(uint32_t)order | 0x80000000u : (uint32_t)order;
}

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

/* `bits` times 2^(ratio / 256), one rounding. */
static uint32_t scaled(const struct state *state, uint32_t bits, int32_t ratio) {
  if (ratio == 0) return bits;
  uint32_t index = (uint32_t)(ratio + RATIO_MOST);
  float factor = float_of(((uint32_t)(127 - RATIO_MOST / 256) + index / 256) << 23 | state->ratio[index % 256]);
  return bits_of(float_of(bits) * factor);
}

/* Whether a ratio can stand before what is left: both ends agree on it from the old value alone. */
static bool has_ratio(uint32_t bits) {
  uint32_t exponent = bits >> 23 & 255;
  return exponent != 0 && exponent != 255;
}

/* The ratio that comes nearest below, 0 where none is near. */
static int32_t find_ratio(const struct state *state, uint32_t before, uint32_t after) {
  if (!has_ratio(after) || (before ^ after) >> 31) return 0;
  uint32_t size = after & 0x7fffffffu, old = before & 0x7fffffffu;
  int32_t low = 1 - RATIO_MOST, high = RATIO_MOST - 1;
  while (low < high) {
    int32_t middle = low + (high - low + 1) / 2;
    if (scaled(state, old, middle) <= size) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  uint32_t under = size - scaled(state, old, low), over = scaled(state, old, low + 1) - size;
  return under <= over || low == RATIO_MOST - 1 ? low : low + 1;
}

static void code_floats(struct state *state, size_t count) {
  int32_t last_ratio = 0, last_ulps = 0;
  for (size_t i = 0; i < count; i++) {
    uint32_t before = state->before.word[i], after = state->after.word[i];
    int32_t ratio = 0;
    if (has_ratio(before)) {
      ratio = code_value(state, KIND_RATIO, (unsigned)(last_ratio + 32), last_ratio, find_ratio(state, before, after));
      if (ratio <= -RATIO_MOST || ratio >= RATIO_MOST) ratio = 0; /* no encoder says so */
      last_ratio = ratio;
    }
    int32_t middle = ordered(scaled(state, before, ratio));
    int32_t ulps = (int32_t)((uint32_t)ordered(after) - (uint32_t)middle);
    ulps = code_value(state, KIND_ULPS, ratio != 0, last_ulps, ulps);
    last_ulps = ulps;
    state->after.word[i] = from_ordered((int32_t)((uint32_t)middle + (uint32_t)ulps));
  }
}

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

static void code_chunk(const struct run *run, eb_dtype dtype, uint64_t place, size_t size, bool fresh) {
  if (dtype == EB_F32) {
    code_floats(run->state, size / 4);
  } else if (is_words(dtype)) {
    code_integers(run->state, size / 4);
  } else {
    code_bytes(run->state, place, size, fresh);
  }
}

static eb_status code_tensor(const struct run *run, const struct eb_plan_tensor *tensor) {
  struct facts facts = {0};
  eb_status status = run->io->get_new ? look(run, tensor, &facts) : EB_OK;
  if (status) return status;
  facts.same = code_flag(run->state, 0, facts.same);
  if (!facts.same && !is_words(tensor->dtype)) facts.fresh = code_flag(run->state, 1, facts.fresh);
  memset(run->state->byte[0][0], 0, sizeof run->state->byte[0][0]);
  for (uint64_t at = 0; at < tensor->bytes && !status; at += CHUNK) {
    size_t count = tensor->bytes - at < CHUNK ? (size_t)(tensor->bytes - at) : CHUNK;
    status = read_old(run, tensor->offset + at, count);
    if (!status) status = read_new(run, tensor->offset + at, count);
    if (status) return status;
    if (facts.same) {
      memcpy(run->state->after.byte, run->state->before.byte, count);
    } else {
      code_chunk(run, tensor->dtype, at, count, facts.fresh);
    }
    status = put(run, run->state->after.byte, count);
  }
  return status;
}

/* Between tensors, and behind the last one, there are zeros. */
static eb_status put_gap(const struct run *run, uint64_t size) {
  memset(run->state->after.byte, 0, CHUNK);
  eb_status status = EB_OK;
  for (; size && !status; size -= size < CHUNK ? size : CHUNK) {
    status = put(run, run->state->after.byte, size < CHUNK ? (size_t)size : CHUNK);
  }
  return status;
}

static void open_state(struct state *state, struct eb_bit_coder coder) {
  memset(state, 0, sizeof *state);
  eb_predictor_open(&state->predictor, coder);
  eb_mixers_open(state->flag_mixer, 4, 1);
  eb_mixers_open(state->byte_mixer[0], sizeof state->byte_mixer / sizeof(struct eb_mixer), MODELS);
  eb_mixers_open(state->value_mixer[0], sizeof state->value_mixer / sizeof(struct eb_mixer), VALUE_MODELS);
  uint32_t power[EB_LOGIT_ONE + 1];
  eb_powers(power);
  for (unsigned i = 0; i < 256; i++) state->ratio[i] = ((power[i] + 64) >> 7) & 0x7fffffu;
}

eb_status eb_coded_weights(void *memory, struct eb_bit_coder coder, const struct eb_plan *plan,
                           const struct eb_coded_io *io, eb_error *error) {
  struct run run = {.state = memory, .io = io, .error = error};
  open_state(run.state, coder);
  uint64_t at = 0;
  for (uint32_t i = 0; i < plan->tensor_count; i++) {
    struct eb_plan_tensor tensor = eb_plan_tensor(plan, i);
    if (!tensor.in_weights) continue;
    if (tensor.offset < at) {
      return eb_fail(error, EB_REFUSED, "the compiler and this runtime disagree; compile the recipe again",
                     "plan.bin: tensor %u of weights.bin is not behind the one before it", i);
    }
    eb_status status = put_gap(&run, tensor.offset - at);
    if (!status) status = code_tensor(&run, &tensor);
    if (status) return status;
    at = tensor.offset + tensor.bytes;
  }
  return put_gap(&run, plan->weights_bytes - at);
}
