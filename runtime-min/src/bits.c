#include "bits.h"

#include <string.h>

#define HALF (1u << 21)
#define COUNT_BITS 10u
#define COUNT_MASK ((1u << COUNT_BITS) - 1)
#define LEARNING 6
#define LEARNING_SHIFT 18

/* 2^(i / 256) in 2^-30ths for i = 0..256, without libm. */
static void powers(uint32_t power[EB_LOGIT_ONE + 1]) {
  /* 2^(1/256) in 2^-62ths */
  const uint64_t step = UINT64_C(4624189567668517720);
  unsigned __int128 value = (unsigned __int128)1 << 62;
  for (int i = 0; i <= EB_LOGIT_ONE; i++) {
    power[i] = (uint32_t)(value >> 32);
    value = value * step >> 62;
  }
}

static uint16_t probability(const uint32_t power[EB_LOGIT_ONE + 1], int logit) {
  /* p = 1 / (1 + 2^-x), and p(-x) = 1 - p(x) */
  unsigned size = (unsigned)(logit < 0 ? -logit : logit);
  uint64_t odds = (uint64_t)power[size % EB_LOGIT_ONE] << (size / EB_LOGIT_ONE); /* 2^30 is 1 */
  uint64_t p = (UINT64_C(65536) * odds) / (odds + (UINT64_C(1) << 30));
  if (logit < 0) p = 65536 - p;
  return (uint16_t)(p < 1 ? 1 : p > 65535 ? 65535 : p);
}

void eb_predictor_open(struct eb_predictor *predictor, struct eb_bit_coder coder) {
  uint32_t power[EB_LOGIT_ONE + 1];
  powers(power);
  predictor->coder = coder;
  for (int x = -EB_LOGIT_MAX; x < EB_LOGIT_MAX; x++) predictor->squash[x + EB_LOGIT_MAX] = probability(power, x);
  /* The inverse: the least logit whose p is not below. */
  int x = -EB_LOGIT_MAX;
  for (uint32_t i = 0; i < 4096; i++) {
    while (x < EB_LOGIT_MAX - 1 && predictor->squash[x + EB_LOGIT_MAX] < i * 16 + 8) x++;
    predictor->logit[i] = (int16_t)x;
  }
  for (uint32_t n = 0; n < 1024; n++) predictor->rate[n] = (uint16_t)(131072 / (2 * n + 3));
}

void eb_mixers_open(struct eb_mixer *mixers, size_t count, unsigned inputs) {
  memset(mixers, 0, count * sizeof *mixers);
  for (size_t i = 0; i < count; i++) {
    for (unsigned j = 0; j < inputs; j++) mixers[i].weight[j] = (int32_t)(65536 / inputs);
  }
}

static uint32_t value_of(eb_counter counter) {
  return counter ? counter >> COUNT_BITS : HALF;
}

/* Towards the bit, by a share that shrinks with experience. */
static void teach(const struct eb_predictor *predictor, eb_counter *counter, unsigned limit, unsigned bit) {
  uint32_t p = value_of(*counter), n = *counter & COUNT_MASK;
  uint32_t rate = predictor->rate[n];
  if (bit) {
    p += (uint32_t)((uint64_t)((1u << 22) - 1 - p) * rate >> 16);
  } else {
    p -= (uint32_t)((uint64_t)p * rate >> 16);
  }
  *counter = p << COUNT_BITS | (n < limit ? n + 1 : n);
}

static int clamp(int64_t value, int most) {
  return value > most ? most : value < -most ? -most : (int)value;
}

unsigned eb_code_bit(struct eb_predictor *predictor, struct eb_mixer *mixer, eb_counter *const *counter,
                     unsigned inputs, unsigned limit, unsigned bit) {
  int logit[EB_MIX_INPUTS];
  int64_t sum = 0;
  for (unsigned i = 0; i < inputs; i++) {
    logit[i] = predictor->logit[value_of(*counter[i]) >> 10];
    sum += (int64_t)logit[i] * mixer->weight[i];
  }
  int mixed = clamp(sum / 65536, EB_LOGIT_MAX - 1);
  uint32_t p = predictor->squash[mixed + EB_LOGIT_MAX];
  bit = predictor->coder.code(predictor->coder.context, p, bit);
  int32_t error = (int32_t)(bit << 16) - (int32_t)p;
  for (unsigned i = 0; i < inputs; i++) {
    int64_t weight = mixer->weight[i] + (int64_t)logit[i] * error * LEARNING / (1 << LEARNING_SHIFT);
    mixer->weight[i] = clamp(weight, 1 << 22);
    teach(predictor, counter[i], limit, bit);
  }
  return bit;
}

static void take_byte(struct eb_range_decoder *decoder) {
  int byte = decoder->next(decoder->context);
  if (byte < 0) decoder->missing++;
  decoder->value = decoder->value << 8 | (byte < 0 ? 0u : (uint32_t)byte);
}

void eb_range_decoder_open(struct eb_range_decoder *decoder, int (*next)(void *context), void *context) {
  *decoder = (struct eb_range_decoder){.next = next, .context = context, .high = UINT32_MAX};
  for (int i = 0; i < 4; i++) take_byte(decoder);
}

unsigned eb_range_decode(void *context, uint32_t p, unsigned bit) {
  struct eb_range_decoder *decoder = context;
  uint32_t middle = decoder->low + (uint32_t)((uint64_t)(decoder->high - decoder->low) * p >> 16);
  bit = decoder->value <= middle;
  if (bit) {
    decoder->high = middle;
  } else {
    decoder->low = middle + 1;
  }
  while ((decoder->low ^ decoder->high) >> 24 == 0) {
    decoder->low <<= 8;
    decoder->high = decoder->high << 8 | 255;
    take_byte(decoder);
  }
  return bit;
}
