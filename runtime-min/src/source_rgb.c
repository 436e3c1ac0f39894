/* Raw RGB: frames of H x W x 3 bytes, one behind the other. */
#include "source.h"

static eb_status rgb_open(struct eb_source *source, eb_error *error) {
  return eb_source_wants_image(source, error);
}

static eb_status rgb_next(struct eb_source *source, uint8_t *frame, bool *end, eb_error *error) {
  return eb_source_read(source, frame, source->tensor.bytes, end, error);
}

const struct eb_source_driver eb_source_rgb = {.name = "rgb", .open = rgb_open, .next = rgb_next};
