/* Signed integers as modelled bits (SPEC 12.1): is it not zero, is it negative, its class in unary, and what is below
 * the class. */
#ifndef EB_NUMBERS_H
#define EB_NUMBERS_H

#include "bits.h"

#define EB_NUMBER_DETAILS 2u /* bits below a class that are modelled; those below them are even */
#define EB_NUMBER_CLASSES_MAX 64u
#define EB_NUMBER_BITS(classes) (2 + (1 + EB_NUMBER_DETAILS) * (classes))

/* What is known of a number: a row of EB_NUMBER_BITS(classes) counters from each of `count` contexts, and as many
 * mixers. No magnitude is in a class behind `classes`. */
struct eb_number_model {
  eb_counter *row[EB_MIX_INPUTS];
  unsigned count;
  struct eb_mixer *mixers;
  unsigned classes;
  unsigned limit;
};

/* `value` counts only when encoding. */
int32_t eb_number_code(struct eb_predictor *predictor, const struct eb_number_model *model, int32_t value);

/* 0 for 0, else the number of bits. */
unsigned eb_size_class(uint32_t size);

uint32_t eb_magnitude(int32_t value);

#endif
