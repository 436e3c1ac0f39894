/* The codecs of SPEC 12 for the build machine, a library that Python loads: its own encoders, and the device's
 * decoders. */
#ifndef EB_ENCODE_H
#define EB_ENCODE_H

#include <stdint.h>

#define EB_PUBLIC __attribute__((visibility("default")))

/* Each encoder writes at most `capacity` bytes to `out` and returns how many there are, -1 when there is no room, -2
 * when the files do not fit the plan, or memory is short. */
EB_PUBLIC int64_t eb_encode_weights(const uint8_t *plan, uint64_t plan_size, const uint8_t *before,
                                    const uint8_t *after, uint64_t size, uint8_t *out, uint64_t capacity);

/* `steps`: `step_count` times copy, extra, seek. */
EB_PUBLIC int64_t eb_encode_patch(const uint8_t *before, uint64_t old_size, const uint8_t *after, uint64_t new_size,
                                  const int64_t *steps, uint64_t step_count, uint8_t *out, uint64_t capacity);

/* A file of SPEC 12 with what it is made from; sizes of what is not there are 0, and `has_old` says whether the base
 * has it. */
struct eb_decoded {
  const char *path;
  const uint8_t *before, *plan, *old_plan, *coded;
  uint64_t old_size, plan_size, old_plan_size, coded_size;
  uint8_t *after;
  uint64_t new_size;
  int32_t codec;
  int32_t has_old;
};

/* 0, or eb_status with the reason in text[capacity]. */
EB_PUBLIC int32_t eb_decode_file(const struct eb_decoded *file, char *text, uint64_t capacity);

#endif
