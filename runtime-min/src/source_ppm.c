/* Binary PPM (P6, 8 bits): one image or many, one behind the other (netpbm's ppm(5)). */
#include "source.h"

#define NUMBER_MAX 99999999u

static eb_status bad_header(const struct eb_source *source, eb_error *error) {
  return eb_fail(error, EB_INPUT, "only binary PPM (P6) with 8 bits can be read", "%s: malformed PPM header",
                 source->stream.name);
}

static eb_status take(struct eb_source *source, uint8_t *byte, bool *end, eb_error *error) {
  size_t got;
  eb_status status = eb_stream_read(&source->stream, byte, 1, &got, error);
  *end = got == 0;
  return status;
}

static bool is_space(uint8_t c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Spaces and comments, then a decimal number and the one space behind it. */
static eb_status take_number(struct eb_source *source, uint32_t *number, eb_error *error) {
  bool end = false, comment = false, any = false;
  *number = 0;
  for (;;) {
    uint8_t c = 0;
    eb_status status = take(source, &c, &end, error);
    if (status) return status;
    if (end) return bad_header(source, error);
    if (comment) {
      comment = c != '\n';
    } else if (c >= '0' && c <= '9' && *number <= NUMBER_MAX / 10) {
      *number = *number * 10 + (c - '0');
      any = true;
    } else if (any) {
      return is_space(c) ? EB_OK : bad_header(source, error);
    } else if (c == '#') {
      comment = true;
    } else if (!is_space(c)) {
      return bad_header(source, error);
    }
  }
}

static eb_status ppm_open(struct eb_source *source, eb_error *error) {
  return eb_source_wants_image(source, error);
}

static eb_status ppm_next(struct eb_source *source, uint8_t *frame, bool *end, eb_error *error) {
  uint8_t magic[2] = {0};
  eb_status status = eb_source_read(source, magic, sizeof magic, end, error);
  if (status || *end) return status;
  if (magic[0] != 'P' || magic[1] != '6') return bad_header(source, error);
  uint32_t width, height, maximum;
  status = take_number(source, &width, error);
  if (!status) status = take_number(source, &height, error);
  if (!status) status = take_number(source, &maximum, error);
  if (!status && maximum != 255) status = bad_header(source, error);
  if (!status) status = eb_source_check_size(source, width, height, error);
  if (!status) status = eb_source_read(source, frame, source->tensor.bytes, end, error);
  if (status || !*end) return status;
  return eb_fail(error, EB_INPUT, EB_HINT_CUT, "%s: it is cut off: the last image has no pixels", source->stream.name);
}

const struct eb_source_driver eb_source_ppm = {
    .name = "ppm", .magic = "P6", .magic_size = 2, .open = ppm_open, .next = ppm_next};
