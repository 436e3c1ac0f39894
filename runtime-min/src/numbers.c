#include "numbers.h"

#define BIT_ZERO 0u
#define BIT_SIGN 1u
#define FIRST_CLASS 2u

unsigned eb_size_class(uint32_t size) {
  return size ? 32u - (unsigned)__builtin_clz(size) : 0;
}

uint32_t eb_magnitude(int32_t value) {
  return value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
}

static unsigned code_bit(struct eb_predictor *predictor, const struct eb_number_model *model, unsigned which,
                         unsigned bit) {
  eb_counter *counters[EB_MIX_INPUTS];
  for (unsigned i = 0; i < model->count; i++) counters[i] = &model->row[i][which];
  return eb_code_bit(predictor, &model->mixers[which], counters, model->count, model->limit, bit);
}

/* Classes of a magnitude: 1, 2, 3, 4, then two for each power of two: 5-6, 7-8, 9-12, 13-16, ... */
static unsigned class_of(uint32_t magnitude) {
  if (magnitude <= 4) return magnitude - 1;
  unsigned power = 31u - (unsigned)__builtin_clz(magnitude - 1); /* >= 2 */
  return 2 * power + ((magnitude - 1) >> (power - 1) & 1);
}

static unsigned class_bits(unsigned class) {
  return class < 4 ? 0 : class / 2 - 1;
}

static uint32_t class_base(unsigned class) {
  return class < 4 ? class + 1 : ((2u + class % 2) << (class / 2 - 1)) + 1;
}

static uint32_t code_magnitude(struct eb_predictor *predictor, const struct eb_number_model *model,
                               uint32_t magnitude) {
  unsigned wanted = magnitude ? class_of(magnitude) : 0, class = 0;
  while (class < model->classes - 1 && code_bit(predictor, model, FIRST_CLASS + class, class < wanted)) class++;
  uint32_t detail = magnitude ? magnitude - class_base(class) : 0, made = 0;
  unsigned bits = class_bits(class), first = FIRST_CLASS + model->classes + EB_NUMBER_DETAILS * class;
  for (unsigned i = 0; i < bits; i++) {
    unsigned bit = detail >> (bits - 1 - i) & 1;
    if (i < EB_NUMBER_DETAILS) {
      bit = code_bit(predictor, model, first + i, bit);
    } else {
      bit = predictor->coder.code(predictor->coder.context, 32768, bit);
    }
    made = made << 1 | bit;
  }
  return class_base(class) + made;
}

int32_t eb_number_code(struct eb_predictor *predictor, const struct eb_number_model *model, int32_t value) {
  if (!code_bit(predictor, model, BIT_ZERO, value != 0)) return 0;
  unsigned negative = code_bit(predictor, model, BIT_SIGN, value < 0);
  uint32_t magnitude = code_magnitude(predictor, model, eb_magnitude(value));
  return (int32_t)(negative ? 0u - magnitude : magnitude);
}
