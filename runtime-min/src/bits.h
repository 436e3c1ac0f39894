/* Adaptive binary coding (SPEC 12.1): several models predict each bit, a mixer weighs them by how well they did, and an
 * arithmetic coder spends -log2(p) on it. Integers only, so that every machine predicts the same. One code path serves
 * both directions: `code` returns the bit that it was given when it encodes, and the bit that it reads when it decodes.
 */
#ifndef EB_BITS_H
#define EB_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EB_MIX_INPUTS 9u
#define EB_LOGIT_ONE 256 /* a logit is log2(p / (1 - p)), in 256ths */
#define EB_LOGIT_MAX (12 * EB_LOGIT_ONE)

/* Codes one bit whose probability of being 1 is p / 65536, 0 < p < 65536. */
struct eb_bit_coder {
  unsigned (*code)(void *context, uint32_t p, unsigned bit);
  void *context;
};

/* A probability in 22 bits, and in the 10 below how often it was updated. All zeros is "never". */
typedef uint32_t eb_counter;

/* The weights of one mixer: 65536 is 1. */
struct eb_mixer {
  int32_t weight[EB_MIX_INPUTS];
};

struct eb_predictor {
  struct eb_bit_coder coder;
  int16_t logit[4096];               /* of p = (i + 0.5) / 4096 */
  uint16_t squash[2 * EB_LOGIT_MAX]; /* p of a logit, in 65536ths */
  uint16_t rate[1024];               /* 65536 / (n + 1.5) */
};

void eb_predictor_open(struct eb_predictor *predictor, struct eb_bit_coder coder);

/* Equal weights for `count` mixers of `inputs` inputs. */
void eb_mixers_open(struct eb_mixer *mixers, size_t count, unsigned inputs);

/* Codes a bit that `inputs` counters predict, and teaches them and their mixer. `limit` is how many updates a counter
 * remembers at most, 1 to 1023. */
unsigned eb_code_bit(struct eb_predictor *predictor, struct eb_mixer *mixer, eb_counter *const *counter,
                     unsigned inputs, unsigned limit, unsigned bit);

/* The range decoder: a 32-bit interval, its bytes from `next` (zeros behind the end). */
struct eb_range_decoder {
  int (*next)(void *context); /* a byte, or -1 at the end */
  void *context;
  uint32_t low, high, value;
  unsigned missing; /* bytes that were asked for behind the end */
};

void eb_range_decoder_open(struct eb_range_decoder *decoder, int (*next)(void *context), void *context);
unsigned eb_range_decode(void *decoder, uint32_t p, unsigned bit);

#endif
