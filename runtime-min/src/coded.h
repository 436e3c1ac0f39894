/* The models of SPEC 12.1 and 12.2: how one file of a release becomes another, bit by bit. The same code encodes (on
 * the build machine) and decodes (on the device): see bits.h. */
#ifndef EB_CODED_H
#define EB_CODED_H

#include "bits.h"
#include "plan.h"
#include "status.h"

#define EB_CODED_CHUNK ((size_t)16 << 10)

/* Files by offset. `put` gets the new file front to back; `get_new` is NULL when decoding. All return false when they
 * fail, and have filled `error` then. */
struct eb_coded_io {
  bool (*get_old)(void *context, uint64_t offset, void *data, size_t size, eb_error *error);
  bool (*get_new)(void *context, uint64_t offset, void *data, size_t size, eb_error *error);
  bool (*put)(void *context, const void *data, size_t size, eb_error *error);
  void *context;
};

/* Memory that each of the two needs, zeroed or not. */
size_t eb_coded_weights_memory(void);
size_t eb_coded_patch_memory(void);

/* weights.bin, whose tensors the plan of both releases lays out; `memory` is eb_coded_weights_memory() bytes, aligned
 * to 64. */
eb_status eb_coded_weights(void *memory, struct eb_bit_coder coder, const struct eb_plan *plan,
                           const struct eb_coded_io *io, eb_error *error);

/* A step of a patch: `copy` bytes of the old file from the cursor on, each with a difference added, then `extra` bytes
 * of its own, then the cursor moves by `seek`. */
struct eb_patch_step {
  uint32_t copy;
  uint32_t extra;
  int64_t seek;
};

/* Any file. `steps` are the encoder's, the first of which only seeks; NULL when decoding. */
eb_status eb_coded_patch(void *memory, struct eb_bit_coder coder, uint64_t old_size, uint64_t new_size,
                         const struct eb_patch_step *steps, const struct eb_coded_io *io, eb_error *error);

#endif
