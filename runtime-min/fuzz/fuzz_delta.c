/* Three numbers of two bytes, the sizes of a plan, of an old file, and of each new one; plan and old file; then a
 * delta: start from whole ones. The base's head is empty but for two bytes. */
#include <stdlib.h>
#include <string.h>

#include "delta.h"

struct fuzz {
  eb_bytes left; /* of the delta */
  eb_bytes old;
  uint64_t written;
};

static ssize_t read_bytes(void *context, void *data, size_t size) {
  struct fuzz *fuzz = context;
  size_t count = size < fuzz->left.size ? size : fuzz->left.size;
  if (count) memcpy(data, fuzz->left.data, count);
  fuzz->left = (eb_bytes){(const uint8_t *)fuzz->left.data + count, fuzz->left.size - count};
  return (ssize_t)count;
}

static bool get_old(void *context, uint64_t offset, void *data, size_t size, eb_error *error) {
  const struct fuzz *fuzz = context;
  error->status = EB_IO;
  /* No codec may ask for more than there is. */
  if (offset > fuzz->old.size || size > fuzz->old.size - offset) abort();
  if (size) memcpy(data, (const uint8_t *)fuzz->old.data + offset, size);
  return true;
}

static bool put(void *context, const void *data, size_t size, eb_error *error) {
  struct fuzz *fuzz = context;
  (void)data, (void)error;
  fuzz->written += size;
  return true;
}

static void decode_all(struct eb_delta *delta, struct fuzz *fuzz, eb_bytes plan, uint64_t new_size) {
  eb_error error;
  enum eb_codec codec;
  for (int i = 0; i < 8 && eb_delta_next(delta, &codec, &error) == EB_OK; i++) {
    struct eb_delta_file file = {.path = "weights.bin",
                                 .size = codec == EB_CODEC_WEIGHTS ? fuzz->old.size : new_size,
                                 .has_old = fuzz->old.size > 0,
                                 .old_size = fuzz->old.size,
                                 .plan = plan,
                                 .old_plan = plan,
                                 .get_old = get_old,
                                 .put = put,
                                 .context = fuzz};
    if (codec == EB_CODEC_SAME) continue;
    fuzz->written = 0;
    if (eb_delta_decode(delta, codec, &file, &error)) return;
    if (fuzz->written != file.size) abort();
  }
  eb_delta_end(delta, &error);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct eb_delta delta;
  static uint8_t manifest[EB_MANIFEST_BYTES_MAX], signature[EB_SIGNATURE_BYTES_MAX];
  static void *memory;
  eb_error error;
  if (!memory) memory = aligned_alloc(64, (eb_delta_memory() + 63) & ~(size_t)63);
  if (size < 6) return 0;
  size_t plan_size = data[0] | (size_t)data[1] << 8, old_size = data[2] | (size_t)data[3] << 8;
  if (plan_size + old_size > size - 6) return 0;
  eb_bytes plan = {data + 6, plan_size};
  struct fuzz fuzz = {.old = {data + 6 + plan_size, old_size},
                      .left = {data + 6 + plan_size + old_size, size - 6 - plan_size - old_size}};
  eb_feed feed = {.read = read_bytes, .context = &fuzz};
  if (eb_delta_open(&delta, &feed, memory, &error)) return 0;
  eb_bytes base = {"m", 1};
  if (eb_delta_head(&delta, base, base, manifest, signature, &error)) return 0;
  decode_all(&delta, &fuzz, plan, data[4] | (uint64_t)data[5] << 8);
  return 0;
}
