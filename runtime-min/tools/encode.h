/* The encoders of SPEC 12.1 and 12.2, for the build machine: a library that Python loads. */
#ifndef EB_ENCODE_H
#define EB_ENCODE_H

#include <stdint.h>

#define EB_PUBLIC __attribute__((visibility("default")))

/* Each writes at most `capacity` bytes to `out` and returns how many there are, -1 when there is no room, -2 when the files
 * do not fit the plan, or memory is short. */
EB_PUBLIC int64_t eb_encode_weights(const uint8_t *plan, uint64_t plan_size, const uint8_t *before, const uint8_t *after,
                                    uint64_t size, uint8_t *out, uint64_t capacity);

/* `steps`: `step_count` times copy, extra, seek. */
EB_PUBLIC int64_t eb_encode_patch(const uint8_t *before, uint64_t old_size, const uint8_t *after, uint64_t new_size,
                                  const int64_t *steps, uint64_t step_count, uint8_t *out, uint64_t capacity);

#endif
