#include "latency.h"

#include <string.h>

#define SUB_COUNT (UINT64_C(1) << EB_LATENCY_SUB_BITS)

void eb_latency_reset(struct eb_latency *latency) {
  memset(latency, 0, sizeof *latency);
}

/* Below SUB_COUNT a bucket for each nanosecond, above it SUB_COUNT buckets for each power of two. */
static uint32_t bucket_of(uint64_t nanoseconds) {
  if (nanoseconds < SUB_COUNT) return (uint32_t)nanoseconds;
  unsigned shift = 63u - (unsigned)__builtin_clzll(nanoseconds) - EB_LATENCY_SUB_BITS;
  uint64_t bucket = ((uint64_t)(shift + 1) << EB_LATENCY_SUB_BITS) + (nanoseconds >> shift) - SUB_COUNT;
  return bucket < EB_LATENCY_BUCKETS ? (uint32_t)bucket : EB_LATENCY_BUCKETS - 1;
}

/* The middle of a bucket. */
static uint64_t value_of(uint32_t bucket) {
  if (bucket < SUB_COUNT) return bucket;
  unsigned shift = (bucket >> EB_LATENCY_SUB_BITS) - 1;
  return (((bucket & (SUB_COUNT - 1)) + SUB_COUNT) << shift) + ((UINT64_C(1) << shift) >> 1);
}

void eb_latency_add(struct eb_latency *latency, uint64_t nanoseconds) {
  if (latency->count == 0 || nanoseconds < latency->min) latency->min = nanoseconds;
  latency->count++;
  latency->bucket[bucket_of(nanoseconds)]++;
}

uint64_t eb_latency_quantile(const struct eb_latency *latency, double quantile) {
  uint64_t wanted = (uint64_t)(quantile * (double)latency->count), seen = 0;
  if (wanted >= latency->count) wanted = latency->count ? latency->count - 1 : 0;
  for (uint32_t i = 0; i < EB_LATENCY_BUCKETS; i++) {
    seen += latency->bucket[i];
    if (seen > wanted) return value_of(i) > latency->min ? value_of(i) : latency->min;
  }
  return 0;
}
