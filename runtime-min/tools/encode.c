#include "encode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "delta.h"

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

struct decoding {
  const struct eb_decoded *file;
  uint64_t read, written;
};

static ssize_t read_coded(void *context, void *data, size_t size) {
  struct decoding *decoding = context;
  uint64_t left = decoding->file->coded_size - decoding->read;
  if (size > left) size = (size_t)left;
  memcpy(data, decoding->file->coded + decoding->read, size);
  decoding->read += size;
  return (ssize_t)size;
}

static bool get_decoded(void *context, uint64_t offset, void *data, size_t size, eb_error *error) {
  const struct eb_decoded *file = ((struct decoding *)context)->file;
  error->status = EB_REFUSED;
  return get(file->before, file->old_size, offset, data, size);
}

static bool put_decoded(void *context, const void *data, size_t size, eb_error *error) {
  struct decoding *decoding = context;
  error->status = EB_REFUSED;
  if (size > decoding->file->new_size - decoding->written) return false;
  memcpy(decoding->file->after + decoding->written, data, size);
  decoding->written += size;
  return true;
}

int32_t eb_decode_file(const struct eb_decoded *file, char *text, uint64_t capacity) {
  struct decoding decoding = {.file = file};
  eb_feed feed = {.read = read_coded, .context = &decoding};
  eb_error error = {0};
  struct eb_delta *delta = calloc(1, sizeof *delta);
  void *memory = new_memory(eb_delta_memory());
  eb_status status = delta && memory ? EB_OK : EB_MEMORY;
  if (!status) {
    *delta = (struct eb_delta){.feed = &feed, .memory = memory, .left = file->coded_size};
    struct eb_delta_file wanted = {.path = file->path,
                                   .size = file->new_size,
                                   .has_old = file->has_old,
                                   .old_size = file->old_size,
                                   .plan = {file->plan, file->plan_size},
                                   .old_plan = {file->old_plan, file->old_plan_size},
                                   .get_old = get_decoded,
                                   .put = put_decoded,
                                   .context = &decoding};
    status = eb_delta_decode(delta, (enum eb_codec)file->codec, &wanted, &error);
  }
  if (!status && decoding.written != file->new_size) status = EB_REFUSED;
  snprintf(text, capacity, "%s", error.message);
  free(memory);
  free(delta);
  return (int32_t)status;
}
