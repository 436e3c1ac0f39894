/* The golden samples of a bundle: do the outputs come out byte for byte? */
#ifndef EB_CHECK_H
#define EB_CHECK_H

#include "status.h"

/* Runs every sample; *samples is how many agreed. */
eb_status eb_check(eb_model *model, uint64_t *samples, eb_error *error);

/* Whether the median of some runs, on the last sample, is inside the manifest's limit, if it has one. */
eb_status eb_check_latency(eb_model *model, eb_error *error);

#endif
