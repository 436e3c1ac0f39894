#include "encode.h"

#include <stdlib.h>
#include <string.h>

#include "coded.h"

#define NO_ROOM (-1)
#define NO_FIT (-2)
#define ALIGNMENT 64u

/* The inverse of struct eb_range_decoder. */
struct encoder {
  uint8_t *out;
  uint64_t size, capacity;
  uint32_t low, high;
};

static void give_byte(struct encoder *encoder) {
  if (encoder->size < encoder->capacity) encoder->out[encoder->size] = (uint8_t)(encoder->high >> 24);
  encoder->size++;
}

static unsigned encode(void *context, uint32_t p, unsigned bit) {
  struct encoder *encoder = context;
  uint32_t middle = encoder->low + (uint32_t)((uint64_t)(encoder->high - encoder->low) * p >> 16);
  if (bit) {
    encoder->high = middle;
  } else {
    encoder->low = middle + 1;
  }
  while ((encoder->low ^ encoder->high) >> 24 == 0) {
    give_byte(encoder);
    encoder->low <<= 8;
    encoder->high = encoder->high << 8 | 255;
  }
  return bit;
}

/* The fewest bytes that, with the zeros that the decoder reads behind them, lie inside the interval. */
static void finish(struct encoder *encoder) {
  for (unsigned bytes = 0; bytes <= 4; bytes++) {
    uint32_t mask = bytes == 0 ? 0 : UINT32_MAX << (32 - 8 * bytes);
    uint32_t value = encoder->high & mask;
    if (value < encoder->low) continue;
    for (unsigned i = 0; i < bytes; i++) {
      encoder->high = value << (8 * i);
      give_byte(encoder);
    }
    return;
  }
}

struct files {
  const uint8_t *before, *after;
  uint64_t old_size, new_size;
};

static bool get(const uint8_t *file, uint64_t file_size, uint64_t offset, void *data, size_t size) {
  if (offset > file_size || size > file_size - offset) return false;
  memcpy(data, file + offset, size);
  return true;
}

static bool get_old(void *context, uint64_t offset, void *data, size_t size, eb_error *error) {
  const struct files *files = context;
  error->status = EB_REFUSED;
  return get(files->before, files->old_size, offset, data, size);
}

static bool get_new(void *context, uint64_t offset, void *data, size_t size, eb_error *error) {
  const struct files *files = context;
  error->status = EB_REFUSED;
  return get(files->after, files->new_size, offset, data, size);
}

static bool put(void *context, const void *data, size_t size, eb_error *error) {
  (void)context, (void)data, (void)size, (void)error;
  return true;
}

static int64_t finished(struct encoder *encoder, eb_status status) {
  if (status) return NO_FIT;
  finish(encoder);
  return encoder->size <= encoder->capacity ? (int64_t)encoder->size : NO_ROOM;
}

static void *new_memory(size_t size) {
  return aligned_alloc(ALIGNMENT, (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

int64_t eb_encode_weights(const uint8_t *plan_data, uint64_t plan_size, const uint8_t *before, const uint8_t *after,
                          uint64_t size, uint8_t *out, uint64_t capacity) {
  struct eb_plan plan;
  eb_error error = {0};
  struct files files = {before, after, size, size};
  struct eb_coded_io io = {get_old, get_new, put, &files};
  struct encoder encoder = {.out = out, .capacity = capacity, .high = UINT32_MAX};
  if (eb_plan_open(&plan, (eb_bytes){plan_data, plan_size}, size, &error)) return NO_FIT;
  void *memory = new_memory(eb_coded_weights_memory());
  if (!memory) return NO_FIT;
  eb_status status = eb_coded_weights(memory, (struct eb_bit_coder){encode, &encoder}, &plan, &io, &error);
  free(memory);
  return finished(&encoder, status);
}

/* Whether the steps make exactly `new_size` bytes, each of at most 2^30. */
static bool steps_fit(const int64_t *steps, uint64_t count, uint64_t new_size) {
  uint64_t made = 0;
  for (uint64_t i = 0; i < count; i++, steps += 3) {
    if (steps[0] < 0 || steps[1] < 0 || steps[0] > 1 << 30 || steps[1] > 1 << 30) return false;
    if (steps[2] > 1 << 30 || steps[2] < -(1 << 30)) return false;
    made += (uint64_t)steps[0] + (uint64_t)steps[1];
  }
  return count > 0 && made == new_size;
}

int64_t eb_encode_patch(const uint8_t *before, uint64_t old_size, const uint8_t *after, uint64_t new_size,
                        const int64_t *steps, uint64_t step_count, uint8_t *out, uint64_t capacity) {
  eb_error error = {0};
  struct files files = {before, after, old_size, new_size};
  struct eb_coded_io io = {get_old, get_new, put, &files};
  struct encoder encoder = {.out = out, .capacity = capacity, .high = UINT32_MAX};
  if (!steps_fit(steps, step_count, new_size)) return NO_FIT;
  void *memory = new_memory(eb_coded_patch_memory());
  struct eb_patch_step *list = malloc((step_count + 1) * sizeof *list);
  eb_status status = memory && list ? EB_OK : EB_MEMORY;
  for (uint64_t i = 0; list && i < step_count; i++) {
    list[i] = (struct eb_patch_step){(uint32_t)steps[3 * i], (uint32_t)steps[3 * i + 1], steps[3 * i + 2]};
  }
  if (!status) {
    status = eb_coded_patch(memory, (struct eb_bit_coder){encode, &encoder}, old_size, new_size, list, &io, &error);
  }
  free(list);
  free(memory);
  return finished(&encoder, status);
}
