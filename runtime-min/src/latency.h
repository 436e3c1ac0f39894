/* Latencies in nanoseconds: exact minimum, other quantiles to one part in a thousand, in fixed memory. */
#ifndef EB_LATENCY_H
#define EB_LATENCY_H

#include <stdint.h>

#define EB_LATENCY_SUB_BITS 10
#define EB_LATENCY_BUCKETS ((40 - EB_LATENCY_SUB_BITS + 1) << EB_LATENCY_SUB_BITS)

struct eb_latency {
  uint64_t count;
  uint64_t min;
  uint32_t bucket[EB_LATENCY_BUCKETS];
};

void eb_latency_reset(struct eb_latency *latency);
void eb_latency_add(struct eb_latency *latency, uint64_t nanoseconds);

/* The smallest latency that a share `quantile` (0..1) of all does not exceed. */
uint64_t eb_latency_quantile(const struct eb_latency *latency, double quantile);

#endif
